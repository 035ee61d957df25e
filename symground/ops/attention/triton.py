"""The ``triton`` implementation: the kernels of `symground.kernels`, imported when the first one runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symground.ops.attention.autograd import Backend, Gradients, register
from symground.ops.attention.mixing import Mixing
from symground.ops.common import needs
from symground.ops.common.flow import NO_GROUPS, FlowSums, Groups

if TYPE_CHECKING:
    from symground.kernels.attention.launch import Call

refuses = needs.triton


#: The dq kernel also sums up to this many groups of (queries, keys); for more, the flow kernel runs.
_FUSED_GROUPS = (64, 16)


def call_of(q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> Call:
    """The resolved record as the launch's arguments."""
    from symground.kernels.attention.launch import Call

    return Call(q, k, v, **mixing._asdict())


def _forward(q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
    from symground.kernels.attention.forward import attention_forward

    with torch.cuda.device_of(q):
        out: tuple[Tensor, Tensor] = attention_forward(call_of(q, k, v, mixing))
    return out


def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mixing: Mixing,
    of_slopes: bool, saliency: bool, groups: Groups,
) -> Gradients:  # fmt: skip
    from symground.kernels.attention.backward import attention_backward
    from symground.kernels.attention.saliency import attention_saliency

    fused = groups.num_query <= _FUSED_GROUPS[0] and groups.num_key <= _FUSED_GROUPS[1]
    with torch.cuda.device_of(q):
        call = call_of(q, k, v, mixing)
        dq, dk, dv, flow, dslopes = attention_backward(
            call, grad_out, out, lse, of_slopes, *(groups if fused else NO_GROUPS)
        )
        total = attention_saliency(call, grad_out, lse, True) if saliency else None
    return Gradients(dq, dk, dv, total, flow, dslopes)


def _saliency(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, signed: bool) -> Tensor:
    from symground.kernels.attention.saliency import attention_saliency

    with torch.cuda.device_of(q):
        total: Tensor = attention_saliency(call_of(q, k, v, mixing), grad_out, lse.float(), signed)
    return total.to(lse.dtype)


def _flow(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, groups: Groups, matrix_total: bool
) -> FlowSums:
    from symground.kernels.attention.flow import attention_flow

    with torch.cuda.device_of(q):
        sums = attention_flow(
            call_of(q, k, v, mixing),
            grad_out,
            lse.float(),
            *groups.given,
            groups.num_query,
            groups.num_key,
            matrix_total,
        )
    return FlowSums(*(x.to(lse.dtype) for x in sums))


def _rows(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, rows: Tensor) -> Tensor:
    from symground.kernels.attention.saliency_rows import attention_saliency_rows

    with torch.cuda.device_of(q):
        out: Tensor = attention_saliency_rows(call_of(q, k, v, mixing), grad_out, lse.float(), rows)
    return out.to(lse.dtype)


def lacks(q: Tensor, k: Tensor | None, mixing: Mixing, v: Tensor | None) -> str | None:
    """What the kernels do not take on this device, or None."""
    if q.device.type != "cuda":
        return None
    from symground.kernels.common.configs import WIDEST, WITHOUT_WIDE, architecture_of

    width = max(x.shape[3] for x in (q, v) if x is not None)
    if width <= WIDEST or architecture_of(q.device) not in WITHOUT_WIDE:
        return None
    return (
        f"impl: 'triton' expected heads of at most {WIDEST} on this GPU, whose multiprocessors have 100 KiB of shared "
        f"memory, got {width}; impl='torch' takes wider ones"
    )


backend = Backend(forward=_forward, backward=_backward, saliency=_saliency, flow=_flow, rows=_rows)
ops = register("triton", backend, refuses, lacks=lacks)
