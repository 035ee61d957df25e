"""The record of SSD's inputs, which every SSD op passes whole from its public function to its kernels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common.tensors import accumulation_dtype, padding


class Scan(NamedTuple):
    """Any strides; dtypes may differ. Positions outside ``key_range`` are not read, and count as dt = 0."""

    x: Tensor  # [B,T,H,P]
    dt: Tensor  # [B,T,H]
    A: Tensor  # [H]
    B: Tensor  # [B,T,G,N]
    C: Tensor  # [B,T,G,N]
    key_range: Tensor | None  # [B,2]

    def of(self, examples: slice) -> Scan:
        x, dt, A, B, C, key_range = self
        return Scan(
            x[examples], dt[examples], A, B[examples], C[examples], None if key_range is None else key_range[examples]
        )

    def without_padding(self) -> Scan:
        """The inputs in at least float32, with x, dt and B set to 0 outside the valid positions, and without a range.

        A position with dt = 0 neither writes to the state nor decays it. x and B are set to 0 because 0 · NaN is NaN.
        """
        dtype = accumulation_dtype(self.x)
        x, dt, A, B, C = (z.to(dtype) for z in self[:5])
        if self.key_range is not None:
            outside = padding(self.key_range, x.shape[1])[..., None]  # [B,T,1]
            x, B = (z.masked_fill(outside[..., None], 0) for z in (x, B))
            dt = dt.masked_fill(outside, 0)
        return Scan(x, dt, A, B, C, None)


def check_scan(scan: Scan) -> Scan:
    """The checks common to the SSD ops. Returns the record, range as int64; raises ValueError naming the argument."""
    x, dt, A, B, C, key_range = scan
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
    # Padding is not read, so dt may be negative there.
    ok = dt >= 0 if key_range is None else (dt >= 0) | padding(key_range, length)[..., None]
    check.values(ok, "dt: expected numbers of at least 0 (after softplus)", dt)
    return scan._replace(key_range=key_range)


def check_grad(x: Tensor, grad_y: Tensor) -> None:
    """The checks of the gradient from which saliency and flow are computed."""
    check.has_shape("grad_y", grad_y, "B,T,H,P", tuple(x.shape))
    check.matches("grad_y", grad_y, "x", x)
