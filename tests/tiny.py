"""Tiny models with random weights that tests of several rooms make anew each time."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import symground as sg


def llama() -> PreTrainedModel:
    """A Llama of 3 layers × 4 heads, 2 of keys, attached, in evaluation."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=101, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, pad_token_id=None, bos_token_id=None, eos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    return sg.attach(LlamaForCausalLM(config)).eval()
