"""Surprisal read out at every layer through a lens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from symground.ops import _checks as check
from symground.ops._dispatch import choose
from symground.ops._functions import product
from symground.ops._precision import accumulation_dtype
from symground.ops._vocabulary import check_candidates, check_head
from symground.ops._vocabulary_cpu import cpu
from symground.ops._vocabulary_triton import triton
from symground.ops.candidate_surprisal import candidate_surprisal_reference


def lens_surprisal(
    hidden: Tensor,
    translators: tuple[Tensor, Tensor] | None,
    norm: Callable[[Tensor], Tensor],
    weight: Tensor,
    candidates: Tensor,
    bias: Tensor | None = None,
    *,
    impl: str | None = None,
) -> Tensor:
    """Candidate surprisal of every layer's residual stream through its translator, the final norm and the head.

    Args:
        hidden: [L,N,D] residual streams before the final norm.
        translators: (W [L,D,D], b [L,D]); layer l is read as h + h W_lᵀ + b_l. None is the plain logit lens.
        norm: the model's final norm, [N,D] → [N,D], row by row, for any number of rows.
        weight: [V,D] output embedding.
        candidates: [K] or [N,K], int ids in [0, V).
        bias: [V], the head's.
        impl: None picks by device.

    Returns:
        [L,N,K] surprisals in nats, float32 (float64 for float64 inputs).

    Raises:
        ValueError: a shape, dtype, device or id that does not fit, by the name of the argument.
        NotImplementedError: a second derivative, or one in forward mode, but by ``impl="reference"``.

    Source: tuned lens, Belrose et al. 2023, equation 6 (affine residual translators); logit lens, nostalgebraist 2020.
    """
    check_head(hidden, weight, bias, "L,N,D")
    layers, rows, size = hidden.shape
    candidates = check_candidates(candidates, rows, hidden, weight.shape[0])
    if not callable(norm):
        raise ValueError(f"norm: expected a function or module [N,D] → [N,D], got {type(norm).__name__}")
    if translators is not None:
        if not isinstance(translators, tuple) or len(translators) != 2:
            raise ValueError("translators: expected (W [L,D,D], b [L,D]) or None")
        check.has_shape("translators", translators[0], "L,D,D", (layers, size, size))
        check.has_shape("translators", translators[1], "L,D", (layers, size))
        for part in translators:
            check.matches("translators", part, "hidden", hidden)
    return choose("lens_surprisal", IMPLEMENTATIONS, impl, hidden)(hidden, translators, norm, weight, candidates, bias)


def lens_surprisal_reference(
    hidden: Tensor,
    translators: tuple[Tensor, Tensor] | None,
    norm: Callable[[Tensor], Tensor],
    weight: Tensor,
    candidates: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """The specification."""
    if translators is not None:
        w, b = translators
        hidden = hidden + product(hidden, w.mT) + b[:, None]
    found = [candidate_surprisal_reference(_normed(norm, h), weight, candidates, bias) for h in hidden]
    return (
        torch.stack(found)
        if found
        else hidden.new_empty(*hidden.shape[:2], candidates.shape[-1], dtype=accumulation_dtype(hidden))
    )


def _normed(norm: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    normed = norm(rows)
    check.has_shape("norm", normed, "N,D", tuple(rows.shape))
    check.matches("norm", normed, "hidden", rows)
    return normed


def _in_one_pass(surprisal: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """All layers as one matrix of rows, so that the vocabulary is gone through once."""

    def run(
        hidden: Tensor,
        translators: tuple[Tensor, Tensor] | None,
        norm: Callable[[Tensor], Tensor],
        weight: Tensor,
        candidates: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        layers, rows, size = hidden.shape
        if translators is not None:
            w, b = translators
            hidden = hidden + product(hidden, w.mT) + b[:, None]
        if candidates.ndim == 2:
            candidates = candidates.repeat(layers, 1)
        out = surprisal(_normed(norm, hidden.reshape(layers * rows, size)), weight, candidates, bias)
        return out.view(layers, rows, candidates.shape[-1])

    return run


IMPLEMENTATIONS = {
    "reference": lens_surprisal_reference,
    "cpu": _in_one_pass(cpu.surprisal),
    "triton": _in_one_pass(triton.surprisal),
}
