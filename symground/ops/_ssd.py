"""What the SSD ops share: their checks and the mixing matrix of Mamba-2, materialised."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops import _checks as check


def check_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None) -> None:
    """The checks common to the SSD ops; raises ValueError naming the argument."""
    check.has_shape("x", x, "B,T,H,P", (None,) * 4)
    check.is_floating("x", x)
    batch, length, heads, _ = x.shape
    check.has_shape("dt", dt, "B,T,H", (batch, length, heads))
    check.has_shape("A", A, "H", (heads,))
    check.has_shape("B", B, "B,T,G,N", (batch, length, None, None))
    check.has_shape("C", C, "B,T,G,N", tuple(B.shape))
    for name, value in (("dt", dt), ("A", A), ("B", B), ("C", C)):
        check.is_floating(name, value)
        check.matches(name, value, "x", x, dtype=False)
    if B.shape[2] == 0 or heads % B.shape[2]:
        raise ValueError(f"B: expected its groups G to divide H = {heads}, got G = {B.shape[2]}")
    check.values((A < 0).all(), "A: expected negative numbers (a decay)")
    check.values((dt >= 0).all(), "dt: expected numbers of at least 0 (after softplus)")
    check.key_range(key_range, batch, length, x)


def in_range(dt: Tensor, key_range: Tensor | None) -> Tensor:
    """dt [B,T,H] set to 0 outside the valid positions: such a position neither writes to the state nor decays it."""
    if key_range is None:
        return dt
    t = torch.arange(dt.shape[1], device=dt.device)
    return dt * ((t >= key_range[:, :1]) & (t < key_range[:, 1:]))[..., None]


def decay(dt: Tensor, A: Tensor) -> Tensor:
    """Σ_{s<=t} dt_s A, [B,H,T]: the exponent of the decay from the start."""
    return (dt * A).cumsum(1).transpose(1, 2)


def mixing_matrix(dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """M = (C Bᵀ) ∘ exp(segsum(dt·A)) · dt, [B,H,T,T] lower-triangular, in at least float32 (dt's dtype or better)."""
    heads = dt.shape[2]
    b, c = (z.to(dt.dtype).repeat_interleave(heads // z.shape[2], dim=2).transpose(1, 2) for z in (B, C))  # [B,H,T,N]
    total = decay(dt, A)
    upper = torch.ones(dt.shape[1], dt.shape[1], dtype=torch.bool, device=dt.device).triu(1)
    # Masked before exp: above the diagonal the exponent is positive and would overflow, and its gradient be NaN.
    segsum = (total[..., :, None] - total[..., None, :]).masked_fill(upper, float("-inf"))
    return (c @ b.mT) * segsum.exp() * dt.transpose(1, 2)[..., None, :]


def signed_saliency(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, grad_y: Tensor, key_range: Tensor | None
) -> Tensor:
    """S_h = M_h ∘ (dY_h x_hᵀ): [B,H,T,T], signed."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    m = mixing_matrix(in_range(dt.to(dtype), key_range), A.to(dtype), B, C)
    return m * (grad_y.to(dtype).transpose(1, 2) @ x.to(dtype).permute(0, 2, 3, 1))
