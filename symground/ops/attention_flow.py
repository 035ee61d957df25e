"""Saliency flow between groups of positions, per head."""

from __future__ import annotations

from torch import Tensor

from symground.ops import _checks as check
from symground.ops._cpu import cpu
from symground.ops._dispatch import choose
from symground.ops._flash import flash_ops as flash
from symground.ops._mixing import Mixing, check_attention, check_saliency, group_sums, signed_saliency
from symground.ops._triton import triton


def attention_flow(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    num_query_groups: int | None = None,
    num_key_groups: int | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    key_range: Tensor | None = None,
    window: int | None = None,
    gate: Tensor | None = None,
    with_matrix_total: bool = True,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """F_h[a,b] = Σ_{i∈a, j∈b} |S_h[i,j]| with its row and matrix totals.

    Args:
        q, k, v, causal, scale, key_range, window, gate: as in :func:`symground.ops.attention`.
        grad_out: [B,H,T,D] gradient of L with respect to the op's output.
        lse: [B,H,T] natural-log log-sum-exp of the forward pass.
        query_groups, key_groups: [B,T] and [B,S] int; -1 is in no group, yet counts in the totals.
        num_query_groups, num_key_groups: how many groups there are; None reads the largest id (which waits for a GPU).
        with_matrix_total: False leaves matrix_total out (None), and with it the queries that are in no group: the
            usual question, one prediction row, then costs O(B·H·T·D) in place of O(B·H·T²·D).
        impl: None picks by device.

    Returns:
        F [B,H,Gq,Gk]; row_total [B,H,Gq], over the rows of a and all keys; matrix_total [B,H], over all rows and
        keys. In the precision of ``lse``.

    Raises:
        ValueError: a shape, dtype, device or group id that does not fit, by the name of the argument.
        NotImplementedError: a derivative of the result, but by ``impl="reference"``.

    Source: the information flow S_wp, S_pq of Wang et al. 2023, section 2.2, for arbitrary groups, as sums.
    """
    mixing = check_attention(q, k, v, Mixing(causal, scale, key_range, window, gate))
    check_saliency(q, grad_out, lse)
    batch, _, queries, _ = q.shape
    query_groups, num_query = check.groups("query_groups", query_groups, batch, queries, num_query_groups, "q", q)
    key_groups, num_key = check.groups("key_groups", key_groups, batch, k.shape[2], num_key_groups, "q", q)
    with_matrix_total = check.flag("with_matrix_total", with_matrix_total)
    run = choose("attention_flow", IMPLEMENTATIONS, impl, q)
    return run(q, k, v, grad_out, lse, query_groups, key_groups, num_query, num_key, with_matrix_total, mixing)


def attention_flow_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    num_query_groups: int,
    num_key_groups: int,
    matrix: bool,
    mixing: Mixing,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The specification."""
    saliency = signed_saliency(q, k, v, grad_out, lse, mixing).to(lse.dtype)
    flow, row_total, matrix_total = group_sums(saliency, query_groups, key_groups, num_query_groups, num_key_groups)
    return flow, row_total, matrix_total if matrix else None


IMPLEMENTATIONS = {"reference": attention_flow_reference, "cpu": cpu.flow, "triton": triton.flow, "flash": flash.flow}
