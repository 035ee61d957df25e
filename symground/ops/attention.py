"""Softmax attention whose saliency comes out of the ordinary backward pass, as the gradient of a probe."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops import _checks as check
from symground.ops._cpu import cpu
from symground.ops._dispatch import choose
from symground.ops._flash import flash_ops as flash
from symground.ops._functions import at_zero, product
from symground.ops._mixing import Mixing, check_attention, repeat_heads, scores, with_flow_probe
from symground.ops._triton import triton


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    scale: float | None = None,
    key_range: Tensor | None = None,
    window: int | None = None,
    gate: Tensor | None = None,
    saliency_probe: Tensor | None = None,
    flow_probe: Tensor | None = None,
    query_groups: Tensor | None = None,
    key_groups: Tensor | None = None,
    *,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, softmax(q kᵀ · scale) v, with optional probes for its saliency.

    Args:
        q: queries [B,H,T,D], D from 1 to 256.
        k, v: keys and values [B,Hk,S,D]; Hk divides H, query head h reads key head h // (H/Hk).
        causal: query i sees keys j <= i + S - T (aligned bottom-right).
        scale: multiplies q kᵀ; default D ** -0.5.
        key_range: [B,2] int, first and one-past-last valid key of each example (left or right padding); what stands in
            other keys and values, NaN included, is not read.
        window: each query sees only the last ``window`` of its causal keys; needs ``causal=True``.
        gate: [H] or [B,H]; multiplies each head's output. Gate 0 gives exactly 0.
        saliency_probe: [B,T,S], storage of one element is enough (``torch.zeros(1).expand(B, T, S)``). Its values are
            taken to be 0; its *gradient* is the signed saliency Σ_h S_h, with
            S_h[i,j] = gate_h · A_h[i,j] · ⟨dO_h[i], V_h[j]⟩.
        flow_probe: [B,H,Gq,Gk], likewise; its gradient is the flow F_h[a,b] = Σ_{i∈a, j∈b} |S_h[i,j]|.
        query_groups, key_groups: [B,T] and [B,S] int group ids for ``flow_probe``, -1 in no group.
        impl: None picks by device; a named implementation is never replaced by another.

    Returns:
        out [B,H,T,D] in the dtype of q, and lse [B,H,T], the natural logarithm of the softmax's denominator, float32
        (float64 for float64 inputs), not differentiable. A query with no valid key has output 0, gradient 0,
        saliency 0 and lse -inf.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, by the name of the argument.
        NotImplementedError: a second derivative, or one in forward mode, but by ``impl="reference"``.

    Source: attention, Vaswani et al. 2017; the saliency, Wang et al. 2023 ("Label words are anchors"), equation 1.
    """
    mixing = check_attention(q, k, v, Mixing(causal, scale, key_range, window, gate))
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    if saliency_probe is not None:
        check.probe("saliency_probe", saliency_probe, "B,T,S", (batch, queries, keys), "q", q)
    if flow_probe is not None:
        sizes = (batch, heads, queries, keys)
        query_groups, key_groups = check.flow_probe(flow_probe, query_groups, key_groups, sizes, "q", q)
    run = choose("attention", IMPLEMENTATIONS, impl, q)
    return run(q, k, v, mixing, saliency_probe, flow_probe, query_groups, key_groups)


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mixing: Mixing,
    saliency_probe: Tensor | None,
    flow_probe: Tensor | None,
    query_groups: Tensor | None,
    key_groups: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The specification. A probe p enters as A·(1 + p), so that ∂L/∂p at p = 0 is Σ_h A_h ∘ ∂L/∂A_h."""
    k, v = mixing.readable(k), mixing.readable(v)
    valid, s = mixing.valid(q, k), scores(q, k, mixing.scale_of(q))
    lse = s.detach().masked_fill(~valid, float("-inf")).logsumexp(-1)
    # The lowest finite number, not -inf: a row with no valid key then has a gradient of 0 where -inf would give NaN.
    a = torch.softmax(s.masked_fill(~valid, torch.finfo(s.dtype).min), -1) * valid
    if saliency_probe is not None:
        a = a * (1 + at_zero(saliency_probe)[:, None])
    a = with_flow_probe(a, flow_probe, query_groups, key_groups)
    out = product(a, repeat_heads(v, q.shape[1]).to(a.dtype)).to(q.dtype)
    return mixing.gated(out), lse


IMPLEMENTATIONS = {
    "reference": attention_reference,
    "cpu": cpu.attention,
    "triton": triton.attention,
    "flash": flash.attention,
}
