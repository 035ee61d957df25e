"""The ``triton`` implementation of SSD: the kernels of `symground.kernels`, imported when the first one runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symground.ops.common import needs
from symground.ops.common.flow import FlowSums, Groups
from symground.ops.ssd.autograd import Backend, Gradients, register
from symground.ops.ssd.scan import Scan

if TYPE_CHECKING:
    from symground.kernels.ssd.launch import Call

refuses = needs.triton


def _call(scan: Scan) -> Call:
    """The record as the launch's arguments."""
    from symground.kernels.ssd.launch import Call

    return Call(*scan)


def _forward(scan: Scan, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    from symground.kernels.ssd.forward import ssd_forward

    with torch.cuda.device_of(scan.x):
        found: tuple[Tensor, Tensor] = ssd_forward(_call(scan), initial_state)
    return found


def _backward(grad_y: Tensor, grad_state: Tensor | None, scan: Scan, initial_state: Tensor | None) -> Gradients:
    from symground.kernels.ssd.backward import ssd_backward

    with torch.cuda.device_of(scan.x):
        *found, first = ssd_backward(_call(scan), grad_y, grad_state, initial_state)
    dx, ddt, dA, dB, dC = (g.to(z.dtype).contiguous() for g, z in zip(found, scan[:5], strict=True))
    return Gradients(dx, ddt, dA, dB, dC, None if initial_state is None else first.to(initial_state.dtype))


def _saliency(scan: Scan, grad_y: Tensor, signed: bool) -> Tensor:
    from symground.kernels.ssd.saliency import ssd_saliency

    with torch.cuda.device_of(scan.x):
        total: Tensor = ssd_saliency(_call(scan), grad_y, signed)
    return total


def _flow(scan: Scan, grad_y: Tensor, groups: Groups, matrix_total: bool) -> FlowSums:
    from symground.kernels.ssd.saliency import ssd_flow

    with torch.cuda.device_of(scan.x):
        sums = ssd_flow(_call(scan), grad_y, *groups.given, groups.num_query, groups.num_key, matrix_total)
    return FlowSums(*sums)


backend = Backend(forward=_forward, backward=_backward, saliency=_saliency, flow=_flow)
ops = register("triton", backend, refuses)
