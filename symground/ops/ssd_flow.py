"""Saliency flow between groups of positions in a Mamba-2 mixer, per head."""

from __future__ import annotations

from torch import Tensor

from symground.ops import _checks as check
from symground.ops._dispatch import choose
from symground.ops._mixing import group_sums
from symground.ops._ssd import check_grad, check_ssd, signed_saliency
from symground.ops._ssd_cpu import cpu
from symground.ops._ssd_triton import triton


def ssd_flow(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    grad_y: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    num_query_groups: int | None = None,
    num_key_groups: int | None = None,
    *,
    key_range: Tensor | None = None,
    with_matrix_total: bool = True,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """F_h[a,b] = Σ_{i∈a, j∈b} |S_h[i,j]| with S_h = M_h ∘ (dY_h x_hᵀ), and its row and matrix totals.

    Args:
        x, dt, A, B, C, key_range: as in :func:`symground.ops.ssd`.
        grad_y: [B,T,H,P] gradient of L with respect to the op's output.
        query_groups, key_groups: [B,T] int; -1 is in no group, yet counts in the totals.
        num_query_groups, num_key_groups: how many groups there are; None reads the largest id (which waits for a GPU).
        with_matrix_total: False leaves matrix_total out (None), and with it the work on queries that are in no group.
        impl: None picks by device.

    Returns:
        F [B,H,Gq,Gk], row_total [B,H,Gq], matrix_total [B,H], as :func:`symground.ops.attention_flow`, in at least
        float32.

    Raises:
        ValueError: a shape, dtype, device or group id that does not fit, by the name of the argument.
        NotImplementedError: a derivative of the result, but by ``impl="reference"``.

    Source: Wang et al. 2023, section 2.2, with M of Dao and Gu 2024 in place of the attention matrix.
    """
    key_range = check_ssd(x, dt, A, B, C, key_range)
    check_grad(x, grad_y)
    batch, length = x.shape[:2]
    query_groups, num_query = check.groups("query_groups", query_groups, batch, length, num_query_groups, "x", x)
    key_groups, num_key = check.groups("key_groups", key_groups, batch, length, num_key_groups, "x", x)
    with_matrix_total = check.flag("with_matrix_total", with_matrix_total)
    run = choose("ssd_flow", IMPLEMENTATIONS, impl, x)
    groups = (query_groups, key_groups, num_query, num_key)
    return run(x, dt, A, B, C, key_range, grad_y, *groups, with_matrix_total)


def ssd_flow_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    key_range: Tensor | None,
    grad_y: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    num_query_groups: int,
    num_key_groups: int,
    matrix: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The specification."""
    saliency = signed_saliency(x, dt, A, B, C, key_range, grad_y)
    flow, row_total, matrix_total = group_sums(saliency, query_groups, key_groups, num_query_groups, num_key_groups)
    return flow, row_total, matrix_total if matrix else None


IMPLEMENTATIONS = {"reference": ssd_flow_reference, "cpu": cpu.flow, "triton": triton.flow}
