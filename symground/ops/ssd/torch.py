"""The ``torch`` implementation of SSD: plain PyTorch on any device, without reading a value there."""

from __future__ import annotations

from torch import Tensor

from symground.ops.common import needs
from symground.ops.common.flow import FlowSums, Groups
from symground.ops.ssd import chunks, tiles
from symground.ops.ssd.autograd import Backend, register
from symground.ops.ssd.scan import Scan

refuses = needs.nothing


def _saliency(scan: Scan, grad_y: Tensor, signed: bool) -> Tensor:
    return tiles.saliency(scan, grad_y, signed, reads=False)


def _flow(scan: Scan, grad_y: Tensor, groups: Groups, matrix_total: bool) -> FlowSums:
    return tiles.flow(scan, grad_y, groups, matrix_total, reads=False)


backend = Backend(forward=chunks.forward, backward=chunks.backward, saliency=_saliency, flow=_flow)
ops = register("torch", backend, refuses)
