"""The public ops of Mamba-2's state-space mixing (SSD): like attention, a mixer of positions with heads."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common.dispatch import choose
from symground.ops.common.flow import check_groups
from symground.ops.common.probes import GradientProbes, check_probes
from symground.ops.ssd import cpu, mamba_ssm, reference, torch, triton
from symground.ops.ssd.scan import Scan, check_grad, check_scan

#: The implementations by their name for ``impl``, in the order in which ``impl=None`` tries them. ``torch`` takes any
#: tensor, so what comes after it runs only if it is named.
IMPLEMENTATIONS = {
    "cpu": cpu.ops, "mamba_ssm": mamba_ssm, "triton": triton.ops, "torch": torch.ops, "reference": reference,
}  # fmt: skip


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
    """y = M x for each head, with M = (C Bᵀ) ∘ exp(segsum(dt·A)) · dt lower-triangular; without the D skip.

    Args:
        x: [B,T,H,P] inputs of the heads.
        dt: [B,T,H] step sizes, after softplus.
        A: [H] decay rates, negative.
        B, C: [B,T,G,N]. G divides H, and head h uses group h // (H/G).
        key_range: [B,2] int, first and one-past-last valid position. Other positions neither write to the state nor
            decay it, and x, B and dt are not read there, so they may be NaN.
        initial_state: [B,H,P,N] state before the first position; None is 0.
        saliency_probe: [B,T,T]; storage of one element is enough. Its values are taken to be 0. Its *gradient* is the
            signed saliency Σ_h S_h, S_h = M_h ∘ (dY_h x_hᵀ). The D skip and the initial state are not in M.
        flow_probe: [B,H,Gq,Gk], likewise. Its gradient is the flow F_h[a,b] = Σ_{i∈a, j∈b} |S_h[i,j]|.
        query_groups, key_groups: [B,T] int group ids for ``flow_probe``; -1 is in no group.
        return_state: also return the state after the last position, with which another call can continue.
        impl: None picks by device. "mamba_ssm" is that package's scan on a GPU. None picks it if it imports, x is in
            half precision, and torch does not require deterministic algorithms. It uses this package's gradients of the
            probes.

    Returns:
        [B,T,H,P] in the dtype of x; with ``return_state`` also the state [B,H,P,N] in at least float32.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value; the message names it.
        NotImplementedError: a second or forward-mode derivative was requested; only ``impl="reference"`` has them.

    Source: Dao and Gu 2024 ("Transformers are SSMs"), section 6, the quadratic dual form; the saliency, Wang et al.
    2023 ("Label words are anchors"), equation 1, with M in place of the attention matrix.

    Example:
        >>> x, dt, A = torch.randn(1, 5, 2, 8), torch.rand(1, 5, 2), -torch.rand(2)
        >>> B, C = torch.randn(1, 5, 1, 4), torch.randn(1, 5, 1, 4)
        >>> state, ys = torch.zeros(1, 2, 8, 4), []
        >>> for t in range(5):
        ...     written = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        ...     state = torch.exp(dt[:, t] * A)[..., None, None] * state + written
        ...     ys.append((state * C[:, t, :, None]).sum(-1))
        >>> torch.allclose(ops.ssd(x, dt, A, B, C), torch.stack(ys, 1), atol=1e-5)
        True
    """
    scan = check_scan(Scan(x, dt, A, B, C, key_range))
    batch, length, heads, size = x.shape
    if initial_state is not None:
        check.has_shape("initial_state", initial_state, "B,H,P,N", (batch, heads, size, B.shape[3]))
        check.is_floating("initial_state", initial_state)
        check.matches("initial_state", initial_state, "x", x, dtype=False)
    given = GradientProbes(saliency_probe, flow_probe, query_groups, key_groups)
    probes = check_probes(given, (batch, heads, length, length), "x", x)
    return_state = check.flag("return_state", return_state)
    y, state = choose("ssd", IMPLEMENTATIONS, impl, x)(scan, initial_state, probes)
    return (y, state) if return_state else y


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
        [B,T,T] in at least float32. M includes neither the D skip, a diagonal term, nor the short convolution.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value; the message names it.
        NotImplementedError: a derivative of the result was requested; only ``impl="reference"`` has it.

    Source: Wang et al. 2023, equation 1, with M of Dao and Gu 2024 in place of the attention matrix.

    Example:
        >>> x, dt, A, grad_y = torch.randn(1, 5, 2, 8), torch.rand(1, 5, 2), -torch.rand(2), torch.randn(1, 5, 2, 8)
        >>> B, C = torch.randn(1, 5, 1, 4), torch.randn(1, 5, 1, 4)
        >>> signed = ops.ssd_saliency(x, dt, A, B, C, grad_y, signed=True)
        >>> torch.allclose(signed.sum(-1), (grad_y * ops.ssd(x, dt, A, B, C)).sum((-1, -2)), atol=1e-4)
        True
    """
    scan = check_scan(Scan(x, dt, A, B, C, key_range))
    check_grad(x, grad_y)
    signed = check.flag("signed", signed)
    total: Tensor = choose("ssd_saliency", IMPLEMENTATIONS, impl, x)(scan, grad_y, signed)
    return total


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
        num_query_groups, num_key_groups: the numbers of groups. None takes them from the ids, which waits for a GPU.
        with_matrix_total: False omits matrix_total (None) and skips the queries that are in no group.
        impl: None picks by device.

    Returns:
        F [B,H,Gq,Gk], row_total [B,H,Gq] and matrix_total [B,H], as in :func:`symground.ops.attention_flow`, in at
        least float32.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or group id; the message names it.
        NotImplementedError: a derivative of the result was requested; only ``impl="reference"`` has it.

    Source: Wang et al. 2023, section 2.2, with M of Dao and Gu 2024 in place of the attention matrix.

    Example:
        >>> x, dt, A, grad_y = torch.randn(1, 5, 1, 8), torch.rand(1, 5, 1), -torch.rand(1), torch.randn(1, 5, 1, 8)
        >>> B, C = torch.randn(1, 5, 1, 4), torch.randn(1, 5, 1, 4)
        >>> ids = torch.tensor([[0, 0, 1, 1, -1]])
        >>> flow, row_total, matrix_total = ops.ssd_flow(x, dt, A, B, C, grad_y, ids, ids)
        >>> of_one_head = ops.ssd_saliency(x, dt, A, B, C, grad_y)
        >>> torch.allclose(flow[:, 0, 1, 0], of_one_head[:, 2:4, :2].sum((-1, -2)), atol=1e-5)
        True
    """
    scan = check_scan(Scan(x, dt, A, B, C, key_range))
    check_grad(x, grad_y)
    sizes = (x.shape[0], x.shape[1], x.shape[1])
    groups = check_groups(query_groups, key_groups, num_query_groups, num_key_groups, sizes, "x", x)
    with_matrix_total = check.flag("with_matrix_total", with_matrix_total)
    flow, row_total, matrix_total = choose("ssd_flow", IMPLEMENTATIONS, impl, x)(
        scan, grad_y, groups, with_matrix_total
    )
    return flow, row_total, matrix_total if with_matrix_total else None
