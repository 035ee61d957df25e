"""The ``triton`` implementation of SSD: the kernels of `symground.kernels`, imported when the first of them runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symground.ops._ssd_registered import SSDKernels, register

if TYPE_CHECKING:
    from symground.kernels.ssd_launch import Scan


def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None) -> Scan:
    from symground.kernels.ssd_launch import Scan

    return Scan(x, dt, A, B, C, key_range)


def _forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    from symground.kernels.ssd_forward import ssd_forward

    with torch.cuda.device_of(x):
        found: tuple[Tensor, Tensor] = ssd_forward(_scan(x, dt, A, B, C, key_range), initial_state)
    return found


def _backward(
    grad_y: Tensor, grad_state: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    key_range: Tensor | None, initial_state: Tensor | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    from symground.kernels.ssd_backward import ssd_backward

    with torch.cuda.device_of(x):
        *found, first = ssd_backward(_scan(x, dt, A, B, C, key_range), grad_y, grad_state, initial_state)
    dx, ddt, dA, dB, dC = (g.to(z.dtype).contiguous() for g, z in zip(found, (x, dt, A, B, C), strict=True))
    return dx, ddt, dA, dB, dC, None if initial_state is None else first.to(initial_state.dtype)


def _saliency(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None, grad_y: Tensor, signed: bool
) -> Tensor:
    from symground.kernels.ssd_saliency import ssd_saliency

    with torch.cuda.device_of(x):
        total: Tensor = ssd_saliency(_scan(x, dt, A, B, C, key_range), grad_y, signed)
    return total


def _flow(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, key_range: Tensor | None, grad_y: Tensor,
    query_groups: Tensor, key_groups: Tensor, num_query_groups: int, num_key_groups: int, matrix: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from symground.kernels.ssd_saliency import ssd_flow

    groups = (query_groups, key_groups, num_query_groups, num_key_groups)
    with torch.cuda.device_of(x):
        sums: tuple[Tensor, Tensor, Tensor] = ssd_flow(_scan(x, dt, A, B, C, key_range), grad_y, *groups, matrix)
    return sums


ssd_triton_kernels = SSDKernels(_forward, _backward, _saliency, _flow)
triton = register("triton", ssd_triton_kernels, None)
