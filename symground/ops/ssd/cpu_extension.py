"""SSD by the C++ extension, if it is built. It computes what `chunks` does, and keeps a head's chunks in cache."""

from __future__ import annotations

from torch import Tensor

from symground.ops.common import extension
from symground.ops.common.tensors import accumulation_dtype
from symground.ops.ssd.autograd import Gradients
from symground.ops.ssd.scan import Scan


def forward(scan: Scan, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `chunks.forward`."""
    x = scan.x
    (batch, _, heads, size), dtype = x.shape, accumulation_dtype(x)
    y, state = x.new_empty(x.shape, dtype=dtype), x.new_empty(batch, heads, size, scan.B.shape[3], dtype=dtype)
    extension.library.ssd(*_inputs(scan, initial_state), y, state)
    return y.to(x.dtype), state


def backward(grad_y: Tensor, grad_state: Tensor | None, scan: Scan, initial_state: Tensor | None) -> Gradients:
    """As `chunks.backward`."""
    x = scan.x
    (batch, _, heads, size), dtype = x.shape, accumulation_dtype(x)
    ddt, dB, dC = (x.new_empty(z.shape, dtype=dtype) for z in (scan.dt, scan.B, scan.C))
    # The extension adds to dx. It gives each example its own row of dA, because each is computed by its own thread.
    dx, dA = (x.new_zeros(shape, dtype=dtype) for shape in (x.shape, (batch, heads)))
    first = x.new_empty(batch, heads, size, scan.B.shape[3], dtype=dtype)
    grad_state = None if grad_state is None else grad_state.to(dtype).contiguous()
    inputs = _inputs(scan, initial_state)
    extension.library.ssd_backward(_row(grad_y.to(dtype)), grad_state, *inputs, dx, ddt, dA, dB, dC, first)
    found = (dx, ddt, dA.sum(0), dB, dC)
    dx, ddt, dA, dB, dC = (g.to(z.dtype) for g, z in zip(found, scan[:5], strict=True))
    return Gradients(dx, ddt, dA, dB, dC, None if initial_state is None else first.to(initial_state.dtype))


def _inputs(scan: Scan, initial_state: Tensor | None) -> tuple[Tensor | None, ...]:
    """The inputs in one dtype, with contiguous heads."""
    dtype = accumulation_dtype(scan.x)
    ranges = None if scan.key_range is None else scan.key_range.long().contiguous()
    state = None if initial_state is None else initial_state.to(dtype).contiguous()
    x, B, C = (_row(z.to(dtype)) for z in (scan.x, scan.B, scan.C))
    return x, scan.dt.to(dtype), scan.A.to(dtype).contiguous(), B, C, ranges, state


def _row(x: Tensor) -> Tensor:
    """[B,T,H,P] with H and P contiguous; copied only if they are not."""
    adjacent = x.stride(3) == 1 or x.shape[3] == 1
    return x if adjacent and (x.stride(2) == x.shape[3] or x.shape[2] == 1) else x.contiguous()
