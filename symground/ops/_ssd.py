"""What the SSD ops share: their checks and the mixing matrix of Mamba-2, materialised."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops import _checks as check
from symground.ops._functions import product
from symground.ops._precision import accumulation_dtype


def check_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None) -> Tensor | None:
    """The checks common to the SSD ops; raises ValueError naming the argument. Returns the range as int64."""
    check.has_shape("x", x, "B,T,H,P", (None,) * 4)
    check.is_floating("x", x)
    batch, length, heads, _ = x.shape
    if length == 0:
        raise ValueError("x: expected at least one position, got T = 0")
    check.has_shape("dt", dt, "B,T,H", (batch, length, heads))
    check.has_shape("A", A, "H", (heads,))
    check.has_shape("B", B, "B,T,G,N", (batch, length, None, None))
    check.has_shape("C", C, "B,T,G,N", tuple(B.shape))
    for name, value in (("dt", dt), ("A", A), ("B", B), ("C", C)):
        check.is_floating(name, value)
        check.matches(name, value, "x", x, dtype=False)
    if B.shape[3] == 0:
        raise ValueError("B: expected a state of at least 1, got N = 0")
    if B.shape[2] == 0 or heads % B.shape[2]:
        raise ValueError(f"B: expected its groups G to divide H = {heads}, got G = {B.shape[2]}")
    key_range = check.key_range(key_range, batch, length, "x", x)
    check.values(A < 0, "A: expected negative numbers (a decay)", A)
    # Padding may hold anything; what may not be negative is what is read.
    ok = dt >= 0 if key_range is None else (dt >= 0) | out_of_range(key_range, length)[..., None]
    check.values(ok, "dt: expected numbers of at least 0 (after softplus)", dt)
    return key_range


def out_of_range(key_range: Tensor, length: int) -> Tensor:
    """[B,T] True at positions outside each example's valid ones."""
    t = torch.arange(length, device=key_range.device)
    return (t < key_range[:, :1]) | (t >= key_range[:, 1:])


def readable(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The inputs in at least float32, with 0 in x, dt and B outside the valid positions.

    dt 0 neither writes to the state nor decays it; but 0 · NaN would be NaN.
    """
    dtype = accumulation_dtype(x)
    x, dt, A, B, C = (z.to(dtype) for z in (x, dt, A, B, C))
    if key_range is None:
        return x, dt, A, B, C
    outside = out_of_range(key_range, x.shape[1])[..., None]  # [B,T,1]
    return x.masked_fill(outside[..., None], 0), dt.masked_fill(outside, 0), A, B.masked_fill(outside[..., None], 0), C


def decay(dt: Tensor, A: Tensor) -> Tensor:
    """Σ_{s<=t} dt_s A, [B,H,T]: the exponent of the decay from the start."""
    return (dt * A).cumsum(1).transpose(1, 2)


def mixing_matrix(dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """M = (C Bᵀ) ∘ exp(segsum(dt·A)) · dt, [B,H,T,T] lower-triangular, of inputs as `readable` gives them."""
    heads = dt.shape[2]
    b, c = (z.repeat_interleave(heads // z.shape[2], dim=2).transpose(1, 2) for z in (B, C))  # [B,H,T,N]
    total = decay(dt, A)
    below = torch.ones(dt.shape[1], dt.shape[1], dtype=torch.bool, device=dt.device).tril(-1)
    # Masked before exp: above the diagonal it would overflow, and its gradient be NaN; on it, where nothing decays, the
    # gradient's two parts would cancel to noise.
    segsum = torch.where(below, total[..., :, None] - total[..., None, :], 0.0).exp().tril()
    return product(c, b.mT) * segsum * dt.transpose(1, 2)[..., None, :]


def signed_saliency(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None, grad_y: Tensor
) -> Tensor:
    """S_h = M_h ∘ (dY_h x_hᵀ): [B,H,T,T], signed."""
    x, dt, A, B, C = readable(x, dt, A, B, C, key_range)
    return mixing_matrix(dt, A, B, C) * product(grad_y.to(x.dtype).transpose(1, 2), x.permute(0, 2, 3, 1))


def check_grad(x: Tensor, grad_y: Tensor) -> None:
    check.has_shape("grad_y", grad_y, "B,T,H,P", tuple(x.shape))
    check.matches("grad_y", grad_y, "x", x)
