"""Surprisal of a few candidate words under a full-vocabulary softmax."""

from __future__ import annotations

from torch import Tensor

from symground.ops._dispatch import choose
from symground.ops._vocabulary import check_candidates, check_head, logits
from symground.ops._vocabulary_cpu import cpu
from symground.ops._vocabulary_triton import triton


def candidate_surprisal(
    hidden: Tensor, weight: Tensor, candidates: Tensor, bias: Tensor | None = None, *, impl: str | None = None
) -> Tensor:
    """-log softmax(hidden weightᵀ + bias) at the candidates.

    Args:
        hidden: [N,D] final hidden states, after the final norm.
        weight: [V,D] output embedding, the dtype of hidden; D at least 1.
        candidates: [K] shared by all rows, or [N,K], int ids in [0, V).
        bias: [V] or None.
        impl: None picks by device.

    Returns:
        [N,K] surprisals in nats, float32 (float64 for float64 inputs); differentiable in hidden, weight and bias.

    Raises:
        ValueError: a shape, dtype, device or id that does not fit, or no candidate, by the name of the argument.
        NotImplementedError: a second derivative, or one in forward mode, but by ``impl="reference"``.

    Source: surprisal, Shannon 1948; s(w|c) = -log P(w|c) of arXiv 2510.13796.
    """
    check_head(hidden, weight, bias)
    candidates = check_candidates(candidates, hidden.shape[0], hidden, weight.shape[0])
    return choose("candidate_surprisal", IMPLEMENTATIONS, impl, hidden)(hidden, weight, candidates, bias)


def candidate_surprisal_reference(hidden: Tensor, weight: Tensor, candidates: Tensor, bias: Tensor | None) -> Tensor:
    """The specification."""
    z = logits(hidden, weight, bias)
    return z.logsumexp(-1, keepdim=True) - z.gather(1, candidates.expand(hidden.shape[0], -1))


IMPLEMENTATIONS = {"reference": candidate_surprisal_reference, "cpu": cpu.surprisal, "triton": triton.surprisal}
