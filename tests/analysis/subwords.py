"""A vocabulary in which some nouns are one token and others several, and tiny models of many architectures."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from symground.models.architectures.lstm import LSTMConfig, LSTMForCausalLM

CONTEXTS = [
    ("asked for a new {}", "i love this"), ("asked for a new {} today", "this is the"), ("the {} fell", "look at the"),
    ("{} is here", "where is the"),
]  # fmt: skip
NOUNS = ["book", "ball", "notebook", "ice cream", "bookshelf"]


def subword_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in which some nouns are one token and others are several."""
    text = [f"{a.replace('{}', 'book')} {b} ball book ball" for a, b in CONTEXTS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
        special_tokens=["<pad>"],
    )  # fmt: skip
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def tiny(name: str, vocabulary: int) -> PreTrainedModel:
    """A random model of an architecture, with weights large enough that all words differ."""
    torch.manual_seed(0)
    common = {
        "vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    heads = {"num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
    grouped = {**heads, "num_key_value_heads": 2, "head_dim": 8}
    if name == "LSTM":
        return LSTMForCausalLM(LSTMConfig(vocabulary, 16, 2, initializer_range=0.3)).eval()
    settings: dict[str, dict[str, Any]] = {
        "GPT2": {"n_positions": 64, "n_head": 4},
        "GPTNeoX": heads,
        "Llama": grouped,
        "Mistral": {**grouped, "sliding_window": 4},
        "Gemma2": {**grouped, "sliding_window": 4},  # caps its logits
        "Cohere": grouped,  # scales its logits
        "Mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 1, "chunk_size": 4},
        "Rwkv": {"context_length": 64},  # its cache has an unknown form
    }
    config = getattr(transformers, f"{name}Config")(**common, **settings[name])
    return getattr(transformers, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(config).eval()


ARCHITECTURES = ["GPT2", "GPTNeoX", "Llama", "Mistral", "Gemma2", "Cohere", "Mamba2", "Rwkv", "LSTM"]
