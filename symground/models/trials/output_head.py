"""The two ends of a causal language model: its final hidden states and its vocabulary head."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from symground import ops
from symground.models.hooks import body, device_of, hooked_by_others, is_plain, untapped
from symground.models.trials.cached_trials import tried
from symground.models.trials.own_logits import OwnLogits

#: The most logits that are computed at once if the vocabulary head is not a plain product.
_AT_ONCE = 2**24
#: The most logits of a pass that are kept for its backward pass (2 MiB in float32), a few rows of a large vocabulary.
_KEPT = 2**19


@dataclass(frozen=True)
class Readout:
    """A model's vocabulary head."""

    weight: Tensor
    """[V,D]"""
    bias: Tensor | None
    """[V] or None"""
    module: Callable[[Tensor], Tensor] | None = None
    """What computes the logits [N,V] of hidden states [N,D] if they are not hidden · weightᵀ + bias: the head's module
    (an adapter, a hook, an offloaded weight), or the model's own forward pass (scaled, capped, transformed logits)."""

    def detached(self) -> Readout:
        """The vocabulary head with detached weights, for backward passes that need no gradient of them."""
        return replace(self, weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())

    def logits(self, hidden: Tensor) -> Tensor:
        """[…,D] → […,V]."""
        hidden = self._as_read(hidden)
        if self.module is None:
            return nn.functional.linear(hidden, self.weight, self.bias)
        return self.module(hidden)

    def _as_read(self, hidden: Tensor) -> Tensor:
        """Hidden states in the head's dtype, because some models (Mamba) keep the residual stream in float32."""
        half = self.weight.dtype in (torch.float16, torch.bfloat16)
        return hidden.to(self.weight.dtype) if half and hidden.dtype == torch.float32 else hidden

    def surprisal(self, hidden: Tensor, candidates: Tensor) -> Tensor:
        """Surprisal [N,K] in nats, at least float32, of candidates [K] or [N,K] by final hidden states [N,D]."""
        if self.module is None and self._is_small(hidden):
            return surprisal_of(self.logits(hidden), candidates.expand(len(hidden), -1))
        if self.module is None:
            return ops.candidate_surprisal(self._as_read(hidden), self.weight, candidates, self.bias)
        rows = max(1, _AT_ONCE // self.weight.shape[0])
        each = candidates.expand(len(hidden), -1)
        pieces = zip(hidden.split(rows), each.split(rows), strict=True)
        return torch.cat([surprisal_of(self.logits(h), c) for h, c in pieces])

    def _is_small(self, hidden: Tensor) -> bool:
        """Whether the logits of a pass with gradients are kept for its backward pass.

        The op computes them again there. With few rows, reading the head's weights once more takes as long as a layer.
        """
        precise = self.weight.dtype in (torch.float32, torch.float64) and hidden.dtype == self.weight.dtype
        return (
            hidden.device.type == "cpu" and precise and torch.is_grad_enabled() and hidden.requires_grad
            and len(hidden) * len(self.weight) <= _KEPT
        )  # fmt: skip


def surprisal_of(logits: Tensor, candidates: Tensor) -> Tensor:
    """Surprisal [N,K] in nats, at least float32, of candidates [N,K] by logits [N,V]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Relative to the largest logit: the log-sum-exp is rounded, which an almost certain word would show.
    return -logits.log_softmax(-1).gather(1, candidates.to(logits.device))


def readout(model: PreTrainedModel) -> Readout:
    """The vocabulary head of ``model``; raises ValueError if it has none."""
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"model: expected a causal language model with a vocabulary head, got {type(model).__name__}")
    if not isinstance(getattr(head, "weight", None), Tensor):
        raise ValueError(
            f"model: expected a vocabulary head with a weight, got {type(head).__name__} in {type(model).__name__}; "
            "quantise all but the head (bitsandbytes does so by default)"
        )
    return Readout(head.weight, getattr(head, "bias", None))


def head_of(model: PreTrainedModel) -> Readout:
    """The vocabulary head of ``model``, with its module if it is not a plain product."""
    head, module = readout(model), model.get_output_embeddings()
    return head if is_plain(module, nn.Linear) and not head.weight.is_meta else replace(head, module=module)


def verified_readout(model: PreTrainedModel) -> Readout:
    """The vocabulary head of ``model``, as a trial on a few tokens, for the model as it is now, shows it.

    It is the product with the last hidden states if that gives the model's logits, else the model's own forward pass
    from them on.

    Raises:
        ValueError: neither gives the model's logits, or it has no vocabulary head.
    """
    return readout_by(model, logits_given_by(model))


def readout_by(model: PreTrainedModel, given_by: str) -> Readout:
    """The vocabulary head of ``model`` after a trial of which `logits_given_by` is the outcome."""
    head = head_of(model)
    return replace(head, module=OwnLogits(model)) if given_by == "own" else head


def logits_given_by(model: PreTrainedModel) -> str:
    """What gives the model's logits from its last hidden states, as it is now: a "product", or its "own" forward pass.

    Raises:
        ValueError: as `verified_readout`.
    """
    head = head_of(model)
    given_by = tried(model, "readout", lambda: _given_by(model, head))
    if given_by is None:
        raise ValueError(
            f"model: the logits of {type(model).__name__} do not follow from its last hidden states alone (a hook or a "
            "forward function of other code changes them, or its forward pass reads the layers' states otherwise), "
            "which symground does not support"
        )
    return given_by


@torch.no_grad()
def _given_by(model: PreTrainedModel, head: Readout) -> str | None:
    """The trial of `logits_given_by`; None if neither gives the model's logits."""
    with untapped():
        ids = trial_ids(model, 4).to(device_of(model))
        ids = torch.cat([ids, ids.flip(1)])
        expected, hidden = model(input_ids=ids).logits.flatten(0, 1), hidden_states(model, ids).flatten(0, 1)
        # The head is called on rows, as in use, because a hook of the head may depend on the position.
        rows = hidden if head.weight.is_meta else hidden.to(head.weight.device)
        fits = rows.shape[-1] == head.weight.shape[-1]  # RemBERT's are transformed to another width
        # A hook or forward function of other code may treat other hidden states or positions otherwise.
        own = None if hooked_by_others(model) else replace(head, module=OwnLogits(model))
        if own is not None and not _gives(own, rows, expected):
            own = None
        if fits and _gives(head, rows, expected):
            # A cap hardly changes small logits: large ones are compared too.
            capped = own is not None and not _same(head.logits(64 * rows), own.logits(64 * rows))
            return "own" if capped else "product"
        return None if own is None else "own"


def _gives(head: Readout, rows: Tensor, expected: Tensor) -> bool:
    """Whether each of the hidden states gives its logits wherever it stands: in their order, in reverse, and alone."""
    reverse, alone = head.logits(rows.flip(0)).flip(0), head.logits(rows[2:3])
    return _same(head.logits(rows), expected) and _same(reverse, expected) and _same(alone, expected[2:3])


def _same(found: Tensor, expected: Tensor) -> bool:
    """Whether logits [N,V] agree; each of them, since the norm over a large vocabulary would not show one word's."""
    found = found.to(expected.device)
    return agree(found, expected) and not bool((found - expected).abs().max() > 1e-2 * expected.abs().max())


def trial_ids(model: PreTrainedModel, count: int) -> Tensor:
    """Ids [1,count] for a trial: two ordinary ids in turn, because transformers warns about padding ids."""
    config = model.config.get_text_config()
    special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")]
    # An image token needs an image.
    special += [value for name, value in vars(model.config).items() if name.endswith(("_token_id", "_token_index"))]
    words = None
    with suppress(NotImplementedError):  # of CLIP, with its two towers
        words = getattr(model.get_output_embeddings() or model.get_input_embeddings(), "weight", None)
    known = len(special) + 2 if words is None else min(len(words), len(special) + 2)
    plain = [i for i in range(known) if i not in special] or [0]
    return torch.tensor([[plain[i % 2 % len(plain)] for i in range(count)]])


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two results differ by rounding only; NaN anywhere counts as agreement."""
    exact = expected.dtype in (torch.float32, torch.float64) and torch.get_float32_matmul_precision() == "highest"
    tolerance = 1e-5 if exact else 2e-2
    return not bool((found - expected).norm() > tolerance * expected.norm())


def hidden_states(model: PreTrainedModel, input_ids: Tensor, **inputs: Any) -> Tensor:
    """Final hidden states [B,T,D], after the final norm; logits are not computed.

    Raises:
        ValueError: no part of the model gives them.
    """
    hidden: Tensor | None = getattr(body(model)(input_ids=input_ids, **inputs), "last_hidden_state", None)
    if hidden is None:
        raise ValueError(
            f"model: no part of {type(model).__name__} returns its last hidden states (last_hidden_state), from which "
            "symground computes its logits"
        )
    return hidden
