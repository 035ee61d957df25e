"""Layer saliency of a Mamba-2 mixer, the same quantity as attention's with M in place of A."""

from __future__ import annotations

from torch import Tensor

from symground.ops import _checks as check
from symground.ops._dispatch import choose
from symground.ops._ssd import check_grad, check_ssd, signed_saliency
from symground.ops._ssd_cpu import cpu
from symground.ops._ssd_triton import triton


def ssd_saliency(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    grad_y: Tensor,
    signed: bool = False,
    *,
    key_range: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """I = |Σ_h M_h ∘ (dY_h x_hᵀ)|.

    Args:
        x, dt, A, B, C, key_range: as in :func:`symground.ops.ssd`.
        grad_y: [B,T,H,P] gradient of L with respect to the op's output.
        signed: return the sum over heads without its absolute value.
        impl: None picks by device.

    Returns:
        [B,T,T] in at least float32. The D skip, a diagonal term, and the short convolution are outside M.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, by the name of the argument.
        NotImplementedError: a derivative of the result, but by ``impl="reference"``.

    Source: Wang et al. 2023, equation 1, with M of Dao and Gu 2024 in place of the attention matrix.
    """
    key_range = check_ssd(x, dt, A, B, C, key_range)
    check_grad(x, grad_y)
    signed = check.flag("signed", signed)
    return choose("ssd_saliency", IMPLEMENTATIONS, impl, x)(x, dt, A, B, C, key_range, grad_y, signed)


def ssd_saliency_reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None, grad_y: Tensor, signed: bool
) -> Tensor:
    """The specification."""
    total = signed_saliency(x, dt, A, B, C, key_range, grad_y).sum(1)
    return total if signed else total.abs()


IMPLEMENTATIONS = {"reference": ssd_saliency_reference, "cpu": cpu.saliency, "triton": triton.saliency}
