"""SSD by the C++ extension, where it is built: the same as `_ssd_chunks`, with the chunks of a head in one cache."""

from __future__ import annotations

from torch import Tensor

from symground.ops import _extension
from symground.ops._precision import accumulation_dtype


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `_ssd_chunks.forward`."""
    (batch, _, heads, size), dtype = x.shape, accumulation_dtype(x)
    y, state = x.new_empty(x.shape, dtype=dtype), x.new_empty(batch, heads, size, B.shape[3], dtype=dtype)
    _extension.library.ssd(*_inputs(x, dt, A, B, C, key_range, initial_state), y, state)
    return y.to(x.dtype), state


def backward(
    grad_y: Tensor, grad_state: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    key_range: Tensor | None, initial_state: Tensor | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """As `_ssd_chunks.backward`."""
    (batch, _, heads, size), dtype = x.shape, accumulation_dtype(x)
    ddt, dB, dC = (x.new_empty(shape, dtype=dtype) for shape in (dt.shape, B.shape, C.shape))
    # dx is added to; dA is summed over the examples here, each being a thread's own there.
    dx, dA = (x.new_zeros(shape, dtype=dtype) for shape in (x.shape, (batch, heads)))
    first = x.new_empty(batch, heads, size, B.shape[3], dtype=dtype)
    grad_state = None if grad_state is None else grad_state.to(dtype).contiguous()
    inputs = _inputs(x, dt, A, B, C, key_range, initial_state)
    _extension.library.ssd_backward(_row(grad_y.to(dtype)), grad_state, *inputs, dx, ddt, dA, dB, dC, first)
    found = ((dx, x), (ddt, dt), (dA.sum(0), A), (dB, B), (dC, C))
    return *(g.to(z.dtype) for g, z in found), None if initial_state is None else first.to(initial_state.dtype)


def _inputs(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor | None, ...]:
    """In one dtype, each head's numbers side by side."""
    dtype = accumulation_dtype(x)
    ranges = None if key_range is None else key_range.long().contiguous()
    state = None if initial_state is None else initial_state.to(dtype).contiguous()
    x, B, C = (_row(z.to(dtype)) for z in (x, B, C))
    return x, dt.to(dtype), A.to(dtype).contiguous(), B, C, ranges, state


def _row(x: Tensor) -> Tensor:
    """[B,T,H,P] whose heads and their numbers are side by side; a copy only where they are not."""
    adjacent = x.stride(3) == 1 or x.shape[3] == 1
    return x if adjacent and (x.stride(2) == x.shape[3] or x.shape[2] == 1) else x.contiguous()
