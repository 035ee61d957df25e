"""The two ends of a causal language model: its final hidden states and its vocabulary head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Readout:
    """A model's vocabulary head."""

    weight: Tensor
    """[V,D]"""
    bias: Tensor | None
    """[V] or None"""


def readout(model: PreTrainedModel) -> Readout:
    """The head of ``model``; ValueError when it has none."""
    head = model.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        raise ValueError(f"model: expected a causal language model with a vocabulary head, got {type(model).__name__}")
    return Readout(head.weight, getattr(head, "bias", None))


def hidden_states(model: PreTrainedModel, input_ids: Tensor, **inputs: Any) -> Tensor:
    """Final hidden states [B,T,D], after the final norm, without the head's V-wide product."""
    hidden: Tensor = model.base_model(input_ids=input_ids, **inputs).last_hidden_state
    return hidden
