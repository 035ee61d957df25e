"""The ``torch`` implementation: the tiles of `tiles.py` on any device, without reading a value there.

It is the last resort where no kernel runs: on other devices than CPUs and GPUs of CUDA, on old GPUs, without Triton,
and for float64 on a GPU.
"""

from __future__ import annotations

from torch import Tensor

from symground.ops.attention import tiles
from symground.ops.attention.autograd import Backend, Gradients, register
from symground.ops.attention.mixing import Mixing
from symground.ops.common import needs
from symground.ops.common.flow import FlowSums, Groups

refuses = needs.nothing

#: Reading a value would wait for the device.
_READS = False


def _forward(q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
    return tiles.forward(q, k, v, mixing, _READS)


def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mixing: Mixing,
    of_slopes: bool, saliency: bool, groups: Groups,
) -> Gradients:  # fmt: skip
    return tiles.backward(q, k, v, grad_out, lse, mixing, of_slopes, saliency, groups, _READS)


def _saliency(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, signed: bool) -> Tensor:
    total = tiles.saliency(q, k, v, grad_out, lse, mixing, _READS)
    return total if signed else total.abs_()


def _flow(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, groups: Groups, matrix_total: bool
) -> FlowSums:
    return tiles.flow(q, k, v, grad_out, lse, mixing, groups, matrix_total, _READS)


def _rows(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, rows: Tensor) -> Tensor:
    return tiles.of_rows(q, k, v, grad_out, lse, mixing, rows, _READS)


backend = Backend(forward=_forward, backward=_backward, saliency=_saliency, flow=_flow, rows=_rows)
ops = register("torch", backend, refuses)
