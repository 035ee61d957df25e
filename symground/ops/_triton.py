"""The ``triton`` implementation: the kernels of `symground.kernels`, imported when the first of them runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from symground.ops._registered import Kernels, register

if TYPE_CHECKING:
    from symground.kernels.launch import Call

#: The dq kernel sums this many groups of (queries, keys) in passing; more are summed by the flow kernel.
_FUSED_GROUPS = (64, 16)


def _call(q: Tensor, k: Tensor, v: Tensor, *form: Any) -> Call:
    from symground.kernels.launch import Call

    return Call(q, k, v, *form)


def _forward(q: Tensor, k: Tensor, v: Tensor, *form: Any) -> tuple[Tensor, Tensor]:
    from symground.kernels.attention_forward import attention_forward

    with torch.cuda.device_of(q):
        out: tuple[Tensor, Tensor] = attention_forward(_call(q, k, v, *form))
    return out


def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any
) -> tuple[Tensor | None, ...]:
    from symground.kernels.attention_backward import attention_backward

    *form, _saliency_asked, query_groups, key_groups, num_query, num_key = rest
    fused = query_groups is not None and num_query <= _FUSED_GROUPS[0] and num_key <= _FUSED_GROUPS[1]
    groups = (query_groups, key_groups, num_query, num_key) if fused else (None, None, 0, 0)
    with torch.cuda.device_of(q):
        dq, dk, dv, flow = attention_backward(_call(q, k, v, *form), grad_out, out, lse, *groups)
    return dq, dk, dv, None, flow


def _saliency(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, *rest: Any) -> Tensor:
    from symground.kernels.attention_saliency import attention_saliency

    *form, signed = rest
    with torch.cuda.device_of(q):
        total: Tensor = attention_saliency(_call(q, k, v, *form), grad_out, lse.float(), signed)
    return total.to(lse.dtype)


def _flow(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from symground.kernels.attention_flow import attention_flow

    *form, query_groups, key_groups, num_query, num_key, matrix = rest
    with torch.cuda.device_of(q):
        flow, row_total, matrix_total = attention_flow(
            _call(q, k, v, *form), grad_out, lse.float(), query_groups, key_groups, num_query, num_key, matrix
        )
    return flow.to(lse.dtype), row_total.to(lse.dtype), matrix_total.to(lse.dtype)


def _rows(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, *rest: Any) -> Tensor:
    from symground.kernels.attention_saliency_rows import attention_saliency_rows

    *form, rows = rest
    with torch.cuda.device_of(q):
        out: Tensor = attention_saliency_rows(_call(q, k, v, *form), grad_out, lse.float(), rows)
    return out.to(lse.dtype)


triton_kernels = Kernels(_forward, _backward, _saliency, _flow, _rows)
triton = register("triton", triton_kernels, None)
