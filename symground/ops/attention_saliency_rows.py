"""Signed saliency of chosen queries, head by head: what a page of head maps needs, without the T×S matrix."""

from __future__ import annotations

from torch import Tensor

from symground.ops import _checks as check
from symground.ops._cpu import cpu
from symground.ops._dispatch import choose
from symground.ops._flash import flash_ops as flash
from symground.ops._mixing import Mixing, check_attention, check_saliency, signed_saliency
from symground.ops._triton import triton


def attention_saliency_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    rows: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    key_range: Tensor | None = None,
    window: int | None = None,
    gate: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """S_h[i,j] = gate_h · A_h[i,j] · ⟨dO_h[i], V_h[j]⟩ for the queries i in ``rows``, signed, per head.

    Args:
        q, k, v, causal, scale, key_range, window, gate: as in :func:`symground.ops.attention`.
        grad_out: [B,H,T,D] gradient of L with respect to the op's output.
        lse: [B,H,T] natural-log log-sum-exp of the forward pass.
        rows: [B,R] int, query positions in [0, T).
        impl: None picks by device.

    Returns:
        [B,H,R,S] in the precision of ``lse``.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, by the name of the argument.
        NotImplementedError: a derivative of the result, but by ``impl="reference"``.

    Source: Wang et al. 2023, equation 1, before the sum over heads.
    """
    mixing = check_attention(q, k, v, Mixing(causal, scale, key_range, window, gate))
    check_saliency(q, grad_out, lse)
    check.has_shape("rows", rows, "B,R", (q.shape[0], None))
    rows = check.integers("rows", rows)
    check.matches("rows", rows, "q", q, dtype=False)
    check.values((rows >= 0) & (rows < q.shape[2]), "rows: expected positions in [0, T)", rows, T=q.shape[2])
    run = choose("attention_saliency_rows", IMPLEMENTATIONS, impl, q)
    return run(q, k, v, grad_out, lse, rows, mixing)


def attention_saliency_rows_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    rows: Tensor,
    mixing: Mixing,
) -> Tensor:
    """The specification."""
    saliency = signed_saliency(q, k, v, grad_out, lse, mixing)
    return saliency.take_along_dim(rows[:, None, :, None], dim=2).to(lse.dtype)


IMPLEMENTATIONS = {
    "reference": attention_saliency_rows_reference,
    "cpu": cpu.rows,
    "triton": triton.rows,
    "flash": flash.rows,
}
