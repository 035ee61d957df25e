"""Mamba-2's state-space mixing (SSD), the second mixer with heads beside softmax attention."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from symground.ops import _checks as check
from symground.ops import _mamba_ssm
from symground.ops._dispatch import choose
from symground.ops._functions import at_zero, product
from symground.ops._mixing import with_flow_probe
from symground.ops._ssd import check_ssd, decay, mixing_matrix, readable
from symground.ops._ssd_cpu import cpu
from symground.ops._ssd_triton import triton


@overload
def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None = None,
    initial_state: Tensor | None = None, saliency_probe: Tensor | None = None, flow_probe: Tensor | None = None,
    query_groups: Tensor | None = None, key_groups: Tensor | None = None, *, return_state: Literal[False] = False,
    impl: str | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None = None,
    initial_state: Tensor | None = None, saliency_probe: Tensor | None = None, flow_probe: Tensor | None = None,
    query_groups: Tensor | None = None, key_groups: Tensor | None = None, *, return_state: Literal[True],
    impl: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    key_range: Tensor | None = None,
    initial_state: Tensor | None = None,
    saliency_probe: Tensor | None = None,
    flow_probe: Tensor | None = None,
    query_groups: Tensor | None = None,
    key_groups: Tensor | None = None,
    *,
    return_state: bool = False,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = M x per head, M = (C Bᵀ) ∘ exp(segsum(dt·A)) · dt lower-triangular; no D skip.

    Args:
        x: [B,T,H,P] inputs of the heads.
        dt: [B,T,H] step sizes, after softplus.
        A: [H] decay rates, negative.
        B, C: [B,T,G,N]; G divides H, head h uses group h // (H/G).
        key_range: [B,2] int, first and one-past-last valid position; others neither write to the state nor decay it,
            and what stands there in x, B and dt, NaN included, is not read.
        initial_state: [B,H,P,N] state before the first position; None is 0.
        saliency_probe: [B,T,T], storage of one element is enough. Its values are taken to be 0; its *gradient* is the
            signed saliency Σ_h S_h, S_h = M_h ∘ (dY_h x_hᵀ). The D skip and the initial state are not in M.
        flow_probe: [B,H,Gq,Gk], likewise; its gradient is the flow F_h[a,b] = Σ_{i∈a, j∈b} |S_h[i,j]|.
        query_groups, key_groups: [B,T] int group ids for ``flow_probe``, -1 in no group.
        return_state: also return the state after the last position, from which another call goes on.
        impl: None picks by device. "mamba_ssm" is that package's scan on a GPU, unasked where it imports, x is in half
            precision and torch does not ask for deterministic algorithms; the probes' gradients are ours there too.

    Returns:
        [B,T,H,P] in the dtype of x; with ``return_state`` also the state [B,H,P,N] in at least float32.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, by the name of the argument.
        NotImplementedError: a second derivative, or one in forward mode, but by ``impl="reference"``.

    Source: Dao and Gu 2024 ("Transformers are SSMs"), section 6, the quadratic dual form; the saliency, Wang et al.
    2023 ("Label words are anchors"), equation 1, with M in place of the attention matrix.
    """
    key_range = check_ssd(x, dt, A, B, C, key_range)
    batch, length, heads, size = x.shape
    if initial_state is not None:
        check.has_shape("initial_state", initial_state, "B,H,P,N", (batch, heads, size, B.shape[3]))
        check.is_floating("initial_state", initial_state)
        check.matches("initial_state", initial_state, "x", x, dtype=False)
    if saliency_probe is not None:
        check.probe("saliency_probe", saliency_probe, "B,T,T", (batch, length, length), "x", x)
    if flow_probe is not None:
        sizes = (batch, heads, length, length)
        query_groups, key_groups = check.flow_probe(flow_probe, query_groups, key_groups, sizes, "x", x)
    return_state = check.flag("return_state", return_state)
    run = choose("ssd", IMPLEMENTATIONS, impl, x, () if _mamba_ssm.suits(x) else ("mamba_ssm",))
    inputs, probes = (x, dt, A, B, C, key_range), (saliency_probe, flow_probe, query_groups, key_groups)
    y, state = run(*inputs, initial_state, *probes)
    return (y, state) if return_state else y


def ssd_reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None, initial_state: Tensor | None,
    saliency_probe: Tensor | None, flow_probe: Tensor | None, query_groups: Tensor | None, key_groups: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The specification."""
    heads, out_dtype = x.shape[2], x.dtype
    x, dt, A, B, C = readable(x, dt, A, B, C, key_range)
    m, x = mixing_matrix(dt, A, B, C), x.transpose(1, 2)  # [B,H,T,T], [B,H,T,P]
    if saliency_probe is not None:
        m = m * (1 + at_zero(saliency_probe)[:, None])
    y = product(with_flow_probe(m, flow_probe, query_groups, key_groups), x)
    b, c = (z.repeat_interleave(heads // z.shape[2], 2).transpose(1, 2) for z in (B, C))  # [B,H,T,N]
    total = decay(dt, A)  # [B,H,T]
    left = (total[..., -1:] - total).exp() * dt.transpose(1, 2)
    state = product((x * left[..., None]).mT, b)  # [B,H,P,N]
    if initial_state is not None:
        h = initial_state.to(dt.dtype)
        y = y + total.exp()[..., None] * product(c, h.mT)
        state = state + total[..., -1].exp()[..., None, None] * h
    return y.transpose(1, 2).to(out_dtype), state


IMPLEMENTATIONS = {"reference": ssd_reference, "cpu": cpu.ssd, "triton": triton.ssd, "mamba_ssm": _mamba_ssm.mamba_ssm}
