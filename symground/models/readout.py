"""The two ends of a causal language model: its final hidden states and its vocabulary head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.models.mixers import device_of, untapped

_VERIFIED = "_symground_readout_verified"


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


def verified_readout(model: PreTrainedModel) -> Readout:
    """The head of ``model``, once it is known that its logits are hidden · weightᵀ + bias and nothing more.

    Checked on two tokens, once per model.

    Raises:
        ValueError: the model scales, caps or transforms its logits, or has no head.
    """
    head = readout(model)
    if not getattr(model, _VERIFIED, False):
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), untapped(model):
                ids = trial_ids(model, 2).to(device_of(model))
                expected, hidden = model(input_ids=ids).logits, hidden_states(model, ids)
                if head.weight.is_meta:  # it is elsewhere between passes, and its module brings it
                    found = model.get_output_embeddings()(hidden)
                else:
                    hidden = hidden.to(head.weight.device)
                    found = torch.nn.functional.linear(hidden, head.weight, head.bias).to(expected.device)
        finally:
            model.train(training)
        # A cap bends small logits too little to be seen in half precision.
        capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        if capped or not agree(found, expected):
            raise ValueError(
                f"model: the logits of {type(model).__name__} are more than its head's product with its last hidden "
                "states (scaled, capped or transformed), which symground does not support"
            )
        object.__setattr__(model, _VERIFIED, True)
    return head


def trial_ids(model: PreTrainedModel, count: int) -> Tensor:
    """[1,count] ids to try a model with: two ordinary ones in turn, since transformers warns of padding ids."""
    config = model.config.get_text_config()
    special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")]
    # What stands for an image wants one.
    special += [value for name, value in vars(model.config).items() if name.endswith(("_token_id", "_token_index"))]
    plain = [i for i in range(readout(model).weight.shape[0]) if i not in special] or [0]
    return torch.tensor([[plain[i % 2 % len(plain)] for i in range(count)]])


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two ways to the same numbers differ by rounding only; numbers that are NaN in both agree."""
    exact = expected.dtype in (torch.float32, torch.float64) and torch.get_float32_matmul_precision() == "highest"
    tolerance = 1e-5 if exact else 2e-2
    return not bool((found - expected).norm() > tolerance * expected.norm())


def hidden_states(model: PreTrainedModel, input_ids: Tensor, **inputs: Any) -> Tensor:
    """Final hidden states [B,T,D], after the final norm, without the head's V-wide product."""
    hidden: Tensor = model.base_model(input_ids=input_ids, **inputs).last_hidden_state
    return hidden
