"""Tiny models of each kind, with weights drawn from a fixed seed, and their logits under SDPA."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from symground.models.architectures.lstm import LSTMConfig, LSTMForCausalLM

SIZES = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4}
T = 9


def llama(**more: Any) -> LlamaForCausalLM:
    return _drawn(LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **more})))


def mistral(window: int | None = 4) -> MistralForCausalLM:
    return _drawn(MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=window)))


def gpt2() -> GPT2LMHeadModel:
    return _drawn(
        GPT2LMHeadModel(GPT2Config(vocab_size=101, n_positions=64, **OLD, bos_token_id=None, eos_token_id=None))
    )


def mamba2() -> Mamba2ForCausalLM:
    sizes = {"hidden_size": 32, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "num_hidden_layers": 2}
    return _drawn(Mamba2ForCausalLM(Mamba2Config(vocab_size=101, **sizes, bos_token_id=None, eos_token_id=None)))


def lstm() -> LSTMForCausalLM:
    return _drawn(LSTMForCausalLM(LSTMConfig(vocab_size=101, hidden_size=16, num_hidden_layers=2)))


def _drawn(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def ids(count: int = 2, seed: int = 1) -> Tensor:
    return torch.randint(1, 101, (count, T), generator=torch.Generator().manual_seed(seed))


def sdpa(model: PreTrainedModel, mask: Tensor | None, **inputs: Any) -> Tensor:
    """Logits of the same weights under the attention implementation that transformers chooses."""
    twin = type(model)(copy.deepcopy(model.config))
    twin.load_state_dict(model.state_dict())
    twin.set_attn_implementation("sdpa")
    with torch.no_grad():
        return twin.eval()(ids(), attention_mask=mask, **inputs).logits
