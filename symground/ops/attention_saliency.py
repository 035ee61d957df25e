"""Layer saliency from what a flash attention keeps: q, k, v, the gradient of the output and the log-sum-exp."""

from __future__ import annotations

from torch import Tensor

from symground.ops import _checks as check
from symground.ops._cpu import cpu
from symground.ops._dispatch import choose
from symground.ops._flash import flash_ops as flash
from symground.ops._mixing import Mixing, check_attention, check_saliency, signed_saliency
from symground.ops._triton import triton


def attention_saliency(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    signed: bool = False,
    *,
    causal: bool = True,
    scale: float | None = None,
    key_range: Tensor | None = None,
    window: int | None = None,
    gate: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """I = |Σ_h A_h ∘ ∂L/∂A_h|, the saliency of a layer, from (q, k, v, dO, LSE).

    Args:
        q, k, v, causal, scale, key_range, window, gate: as in :func:`symground.ops.attention`.
        grad_out: [B,H,T,D] gradient of L with respect to the op's output, L summed over examples.
        lse: [B,H,T] natural-log log-sum-exp of the forward pass.
        signed: return Σ_h S_h without its absolute value.
        impl: None picks by device.

    Returns:
        [B,T,S] in the precision of ``lse``; 0 outside the valid keys. Units: nats when L is a surprisal in nats.
        With ``signed=True`` each row sums to Σ_h ⟨dO_h[i], O_h[i]⟩.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, by the name of the argument.
        NotImplementedError: a derivative of the result, but by ``impl="reference"``.

    Source: Wang et al. 2023, equation 1, with ∂L/∂A_h = dO_h V_hᵀ.
    """
    mixing = check_attention(q, k, v, Mixing(causal, scale, key_range, window, gate))
    check_saliency(q, grad_out, lse)
    signed = check.flag("signed", signed)
    run = choose("attention_saliency", IMPLEMENTATIONS, impl, q)
    return run(q, k, v, grad_out, lse, signed, mixing)


def attention_saliency_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    signed: bool,
    mixing: Mixing,
) -> Tensor:
    """The specification."""
    total = signed_saliency(q, k, v, grad_out, lse, mixing).sum(1)
    return (total if signed else total.abs()).to(lse.dtype)


IMPLEMENTATIONS = {
    "reference": attention_saliency_reference,
    "cpu": cpu.saliency,
    "triton": triton.saliency,
    "flash": flash.saliency,
}
