"""The ``cpu`` implementation of SSD: forward and backward in chunks, saliency and flow by tiles of queries."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from symground.ops.common import extension, needs
from symground.ops.common.flow import FlowSums, Groups
from symground.ops.ssd import chunks, cpu_extension, tiles
from symground.ops.ssd.autograd import Backend, Gradients, register
from symground.ops.ssd.scan import Scan

refuses = needs.cpu


def _saliency(scan: Scan, grad_y: Tensor, signed: bool) -> Tensor:
    return tiles.saliency(scan, grad_y, signed, reads=True)


def _flow(scan: Scan, grad_y: Tensor, groups: Groups, matrix_total: bool) -> FlowSums:
    return tiles.flow(scan, grad_y, groups, matrix_total, reads=True)


def _inner() -> ModuleType:
    """The module that computes forward and backward: the C++ extension if it is built, else plain PyTorch."""
    return cpu_extension if extension.is_built() else chunks


def _forward(scan: Scan, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _inner().forward(scan, initial_state)
    return found


def _backward(grad_y: Tensor, grad_state: Tensor | None, scan: Scan, initial_state: Tensor | None) -> Gradients:
    found: Gradients = _inner().backward(grad_y, grad_state, scan, initial_state)
    return found


backend = Backend(forward=_forward, backward=_backward, saliency=_saliency, flow=_flow)
ops = register("cpu", backend, refuses, cpu_only=True)
