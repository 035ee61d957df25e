"""The specification of the SSD ops, in plain PyTorch. It materialises M, [B,H,T,T]."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops.common import needs
from symground.ops.common.derivatives import product
from symground.ops.common.flow import FlowSums, Groups, group_sums
from symground.ops.common.probes import GradientProbes
from symground.ops.common.tensors import prefix_sums
from symground.ops.ssd.scan import Scan

refuses = needs.nothing


def ssd(scan: Scan, initial_state: Tensor | None, probes: GradientProbes) -> tuple[Tensor, Tensor]:
    out_dtype, heads = scan.x.dtype, scan.x.shape[2]
    scan = scan.without_padding()
    dt, A = scan.dt, scan.A
    x = scan.x.transpose(1, 2)  # [B,H,T,P]
    y = product(probes.on(mixing_matrix(scan)), x)
    b, c = (z.repeat_interleave(heads // z.shape[2], 2).transpose(1, 2) for z in (scan.B, scan.C))  # [B,H,T,N]
    total = _decay(dt, A)  # [B,H,T]
    left = (total[..., -1:] - total).exp() * dt.transpose(1, 2)
    state = product((x * left[..., None]).mT, b)  # [B,H,P,N]
    if initial_state is not None:
        h = initial_state.to(dt.dtype)
        y = y + total.exp()[..., None] * product(c, h.mT)
        state = state + total[..., -1].exp()[..., None, None] * h
    return y.transpose(1, 2).to(out_dtype), state


def ssd_saliency(scan: Scan, grad_y: Tensor, signed: bool) -> Tensor:
    total = _signed_saliency(scan, grad_y).sum(1)
    return total if signed else total.abs()


def ssd_flow(scan: Scan, grad_y: Tensor, groups: Groups, matrix_total: bool) -> FlowSums:
    return group_sums(_signed_saliency(scan, grad_y), groups)


def _signed_saliency(scan: Scan, grad_y: Tensor) -> Tensor:
    """S_h = M_h ∘ (dY_h x_hᵀ): [B,H,T,T], signed."""
    scan = scan.without_padding()
    x = scan.x
    return mixing_matrix(scan) * product(grad_y.to(x.dtype).transpose(1, 2), x.permute(0, 2, 3, 1))


def mixing_matrix(scan: Scan) -> Tensor:
    """M = (C Bᵀ) ∘ exp(segsum(dt·A)) · dt, [B,H,T,T] lower-triangular, from inputs without padding."""
    dt, heads = scan.dt, scan.dt.shape[2]
    b, c = (z.repeat_interleave(heads // z.shape[2], dim=2).transpose(1, 2) for z in (scan.B, scan.C))  # [B,H,T,N]
    total = _decay(dt, scan.A)
    below = torch.ones(dt.shape[1], dt.shape[1], dtype=torch.bool, device=dt.device).tril(-1)
    # Masked before exp: above the diagonal exp would overflow, and its gradient would be NaN. On the diagonal there is
    # no decay, and the two parts of its gradient would cancel to noise.
    segsum = torch.where(below, total[..., :, None] - total[..., None, :], 0.0).exp().tril()
    return product(c, b.mT) * segsum * dt.transpose(1, 2)[..., None, :]


def _decay(dt: Tensor, A: Tensor) -> Tensor:
    """Σ_{s<=t} dt_s A, [B,H,T]: the exponent of the decay from the first position."""
    return prefix_sums(dt * A, 1).transpose(1, 2)
