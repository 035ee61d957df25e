"""The two ends of a causal language model: its final hidden states and its vocabulary head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from symground import ops
from symground.models.hooks import body, device_of, is_plain, untapped
from symground.models.trials.cached_trials import tried

#: The most logits that are computed at once if the vocabulary head is not a plain product.
_AT_ONCE = 2**24


@dataclass(frozen=True)
class Readout:
    """A model's vocabulary head."""

    weight: Tensor
    """[V,D]"""
    bias: Tensor | None
    """[V] or None"""
    module: nn.Module | None = None
    """The module that computes the logits if they are not hidden · weightᵀ + bias (an adapter, a hook, an offloaded
    weight); None if they are that product."""

    def detached(self) -> Readout:
        """The vocabulary head with detached weights, for backward passes that need no gradient of them."""
        return replace(self, weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())

    def logits(self, hidden: Tensor) -> Tensor:
        """[…,D] → […,V]."""
        hidden = self._as_read(hidden)
        if self.module is None:
            return nn.functional.linear(hidden, self.weight, self.bias)
        logits: Tensor = self.module(hidden)
        return logits

    def _as_read(self, hidden: Tensor) -> Tensor:
        """Hidden states in the head's dtype, because some models (Mamba) keep the residual stream in float32."""
        half = self.weight.dtype in (torch.float16, torch.bfloat16)
        return hidden.to(self.weight.dtype) if half and hidden.dtype == torch.float32 else hidden

    def surprisal(self, hidden: Tensor, candidates: Tensor) -> Tensor:
        """Surprisal [N,K] in nats, at least float32, of candidates [K] or [N,K] by final hidden states [N,D]."""
        if self.module is None:
            return ops.candidate_surprisal(self._as_read(hidden), self.weight, candidates, self.bias)
        rows = max(1, _AT_ONCE // self.weight.shape[0])
        each = candidates.expand(len(hidden), -1)
        pieces = zip(hidden.split(rows), each.split(rows), strict=True)
        return torch.cat([surprisal_of(self.logits(h), c) for h, c in pieces])


def surprisal_of(logits: Tensor, candidates: Tensor) -> Tensor:
    """Surprisal [N,K] in nats, at least float32, of candidates [N,K] by logits [N,V]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.logsumexp(-1, keepdim=True) - logits.gather(1, candidates.to(logits.device))


def readout(model: PreTrainedModel) -> Readout:
    """The vocabulary head of ``model``; raises ValueError if it has none."""
    head = model.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        raise ValueError(f"model: expected a causal language model with a vocabulary head, got {type(model).__name__}")
    return Readout(head.weight, getattr(head, "bias", None))


def head_of(model: PreTrainedModel) -> Readout:
    """The vocabulary head of ``model``, with its module if it is not a plain product."""
    head, module = readout(model), model.get_output_embeddings()
    return head if is_plain(module, nn.Linear) and not head.weight.is_meta else replace(head, module=module)


def verified_readout(model: PreTrainedModel) -> Readout:
    """The vocabulary head of ``model``, after a check that logits = vocabulary head × last hidden states.

    The check is a trial on a few tokens, for the model as it is now.

    Raises:
        ValueError: the model scales, caps or transforms its logits, or has no vocabulary head.
    """
    head = head_of(model)
    # A cap changes small logits too little to be noticed in half precision.
    capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if capped or not tried(model, "readout", lambda: _is_all(model, head)):
        raise ValueError(
            f"model: the logits of {type(model).__name__} are more than its head's product with its last hidden "
            "states (scaled, capped, transformed, or changed by a hook), which symground does not support"
        )
    return head


@torch.no_grad()
def _is_all(model: PreTrainedModel, head: Readout) -> bool:
    """Whether the vocabulary head computes the model's logits from its last hidden states."""
    with untapped():
        ids = trial_ids(model, 4).to(device_of(model))
        expected, hidden = model(input_ids=ids).logits[0], hidden_states(model, ids)[0]
        # The head is called on rows, as in use, because a hook of the head may depend on the position.
        found = head.logits(hidden if head.weight.is_meta else hidden.to(head.weight.device)).to(expected.device)
    # Each logit is compared: the norm over a large vocabulary would not show one word's bias.
    return agree(found, expected) and not bool((found - expected).abs().max() > 1e-2 * expected.abs().max())


def trial_ids(model: PreTrainedModel, count: int) -> Tensor:
    """Ids [1,count] for a trial: two ordinary ids in turn, because transformers warns about padding ids."""
    config = model.config.get_text_config()
    special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")]
    # An image token needs an image.
    special += [value for name, value in vars(model.config).items() if name.endswith(("_token_id", "_token_index"))]
    plain = [i for i in range(min(readout(model).weight.shape[0], len(special) + 2)) if i not in special] or [0]
    return torch.tensor([[plain[i % 2 % len(plain)] for i in range(count)]])


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two results differ by rounding only; NaN anywhere counts as agreement."""
    exact = expected.dtype in (torch.float32, torch.float64) and torch.get_float32_matmul_precision() == "highest"
    tolerance = 1e-5 if exact else 2e-2
    return not bool((found - expected).norm() > tolerance * expected.norm())


def hidden_states(model: PreTrainedModel, input_ids: Tensor, **inputs: Any) -> Tensor:
    """Final hidden states [B,T,D], after the final norm; logits are not computed."""
    hidden: Tensor = body(model)(input_ids=input_ids, **inputs).last_hidden_state
    return hidden
