"""The model's own way from final hidden states to logits: what it scales, caps or transforms there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from symground.models.hooks import body, forward_as


@dataclass
class _States(ModelOutput):
    """What the model without its vocabulary head returns; everything but the hidden states is None."""

    last_hidden_state: Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@dataclass(frozen=True)
class OwnLogits:
    """The model's forward pass, in which given hidden states take the place of those that it would compute."""

    model: PreTrainedModel

    def __call__(self, hidden: Tensor) -> Tensor:
        """Final hidden states [N,D] → logits [N,V]."""

        def given(*args: Any, **kwargs: Any) -> _States:
            return _States(hidden[None])

        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with forward_as({body(self.model): given}):
            logits: Tensor = self.model(input_ids=ids).logits[0]
        return logits
