"""The training loss: cross-entropy of a linear head."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops import _checks as check
from symground.ops._dispatch import choose
from symground.ops._vocabulary import check_head, logits
from symground.ops._vocabulary_cpu import cpu
from symground.ops._vocabulary_triton import triton


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    impl: str | None = None,
) -> Tensor:
    """Cross-entropy of softmax(hidden weightᵀ + bias) against targets.

    Args:
        hidden: [N,D] final hidden states.
        weight: [V,D] output embedding, the dtype of hidden; D at least 1.
        targets: [N] int ids in [0, V), or ``ignore_index``.
        bias: [V] or None.
        ignore_index: a target of this value counts neither in the sum nor in the mean.
        reduction: "mean" over the targets that count, or "sum". With none that count the result is 0.
        impl: None picks by device.

    Returns:
        A scalar in nats, float32 (float64 for float64 inputs); differentiable in hidden, weight and bias. In float32
        and float64 its second derivatives (a gradient penalty, a Hessian) are made with all N·V logits, where they are
        asked for.

    Raises:
        ValueError: a shape, dtype, device, id or reduction that does not fit, by the name of the argument.
        NotImplementedError: a second derivative in half precision, or one of ``impl="triton"``; forward mode but by
            ``impl="reference"``.

    Source: the definition of cross-entropy.
    """
    check_head(hidden, weight, bias)
    check.has_shape("targets", targets, "N", (hidden.shape[0],))
    targets = check.integers("targets", targets)
    check.matches("targets", targets, "hidden", hidden, dtype=False)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
    ignore_index = check.integer("ignore_index", ignore_index)
    known = (targets == ignore_index) | ((targets >= 0) & (targets < weight.shape[0]))
    sizes = {"V": weight.shape[0], "ignore_index": ignore_index}
    check.values(known, "targets: expected ids in [0, V) or ignore_index", targets, **sizes)
    run = choose("linear_cross_entropy", IMPLEMENTATIONS, impl, hidden)
    return run(hidden, weight, targets, bias, ignore_index, reduction)


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, reduction: str
) -> Tensor:
    """The specification."""
    z = logits(hidden, weight, bias)
    total = torch.nn.functional.cross_entropy(z, targets, ignore_index=ignore_index, reduction="sum")
    return total if reduction == "sum" else total / (targets != ignore_index).sum().clamp(min=1)


IMPLEMENTATIONS = {
    "reference": linear_cross_entropy_reference,
    "cpu": cpu.cross_entropy,
    "triton": triton.cross_entropy,
}
