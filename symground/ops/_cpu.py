"""The ``cpu`` implementations: forward and backward by PyTorch's own flash attention, saliency by rows of tiles.

Registered with torch.library, so that a compiled graph keeps them whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from symground.ops._cpu_tiles import rows_of_tiles
from symground.ops._mixing import Mixing, accumulation_dtype, members
from symground.ops.mask import valid_keys

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attention_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mixing: Mixing,
    saliency_probe: Tensor | None,
    flow_probe: Tensor | None,
    query_groups: Tensor | None,
    key_groups: Tensor | None,
) -> tuple[Tensor, Tensor]:
    k, v = mixing.readable(k), mixing.readable(v)
    out, lse = _attention(q, k, v, *mixing.form(q), saliency_probe, flow_probe, query_groups, key_groups)
    # Gated outside the op: the gradient that reaches it is then the gated one, as S wants it.
    return mixing.gated(out), lse.detach()


def attention_saliency_cpu(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, signed: bool, mixing: Mixing
) -> Tensor:
    k, v, grad_out = mixing.readable(k), mixing.readable(v), mixing.gated(grad_out)
    saliency: Tensor = _saliency(q, k, v, grad_out, lse, *mixing.form(q))
    return saliency if signed else saliency.abs_()


def attention_flow_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    num_query_groups: int,
    num_key_groups: int,
    mixing: Mixing,
) -> tuple[Tensor, Tensor, Tensor]:
    k, v, grad_out = mixing.readable(k), mixing.readable(v), mixing.gated(grad_out)
    groups = (query_groups, key_groups, num_query_groups, num_key_groups)
    flow: tuple[Tensor, Tensor, Tensor] = _flow(q, k, v, grad_out, lse, *groups, True, *mixing.form(q))
    return flow


def _mask(q: Tensor, k: Tensor, causal: bool, key_range: Tensor | None, window: int | None) -> Tensor | None:
    """[B or 1, 1, T, S] bool of the valid keys; None where the flash kernel's own causal or full form will do."""
    square = q.shape[2] == k.shape[2]  # that kernel aligns causal top-left
    if key_range is None and window is None and (square or not causal):
        return None
    return valid_keys(q.shape[2], k.shape[2], causal, key_range, window, q.device)


def _additive(valid: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(valid.shape, dtype=like.dtype).masked_fill_(~valid, float("-inf"))


@torch.library.custom_op("symground::attention_cpu", mutates_args=(), device_types="cpu")
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    scale: float,
    key_range: Tensor | None,
    window: int | None,
    saliency_probe: Tensor | None,
    flow_probe: Tensor | None,
    query_groups: Tensor | None,
    key_groups: Tensor | None,
) -> tuple[Tensor, Tensor]:
    valid = _mask(q, k, causal, key_range, window)
    if valid is None:
        out, lse = _flash(q, k, v, 0.0, causal, scale=scale)
    else:
        out, lse = _flash(q, k, v, 0.0, False, attn_mask=_additive(valid, q), scale=scale)
        empty = ~valid.any(-1)  # [B or 1, 1, T]; that kernel gives them a log-sum-exp of 0
        out = out.masked_fill(empty[..., None], 0.0)
        lse = lse.masked_fill(empty, float("-inf"))
    return out.contiguous(), lse.contiguous()


@_attention.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        q.shape[:3], dtype=accumulation_dtype(q)
    )


@torch.library.custom_op("symground::attention_cpu_backward", mutates_args=(), device_types="cpu")
def _attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    key_range: Tensor | None,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    valid = _mask(q, k, causal, key_range, window)
    if valid is None:
        grads = _flash_backward(grad_out, q, k, v, out, lse, 0.0, causal, scale=scale)
    else:
        empty = ~valid.any(-1)
        grad_out, lse = grad_out.masked_fill(empty[..., None], 0.0), lse.masked_fill(empty, 0.0)
        mask = _additive(valid, q)
        grads = _flash_backward(grad_out, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=scale)
    dq, dk, dv = (grad.contiguous() for grad in grads)
    return dq, dk, dv


@_attention_backward.register_fake
def _(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq, dk, dv


@torch.library.custom_op("symground::attention_saliency_cpu", mutates_args=(), device_types="cpu")
def _saliency(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    key_range: Tensor | None,
    window: int | None,
) -> Tensor:
    total = lse.new_zeros(q.shape[0], q.shape[2], k.shape[2])
    for examples, rows, columns, s in rows_of_tiles(q, k, v, grad_out, lse, causal, scale, key_range, window):
        torch.sum(s, 1, out=total[examples, rows, columns])
    return total


@_saliency.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, *_: Any) -> Tensor:
    return lse.new_empty(q.shape[0], q.shape[2], k.shape[2])


@torch.library.custom_op("symground::attention_flow_cpu", mutates_args=(), device_types="cpu")
def _flow(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    num_query_groups: int,
    num_key_groups: int,
    matrix: bool,
    causal: bool,
    scale: float,
    key_range: Tensor | None,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Without ``matrix`` the tiles whose queries are in no group are left out, and matrix_total with them."""
    batch, heads = q.shape[:2]
    flow = lse.new_zeros(batch, heads, num_query_groups, num_key_groups)
    row_total = lse.new_zeros(batch, heads, num_query_groups)
    matrix_total = lse.new_zeros(batch, heads)
    in_query = members(query_groups, num_query_groups, lse.dtype)  # [B,Gq,T]
    in_key = members(key_groups, num_key_groups, lse.dtype).mT  # [B,S,Gk]
    wanted = None if matrix else query_groups >= 0
    for examples, rows, columns, s in rows_of_tiles(q, k, v, grad_out, lse, causal, scale, key_range, window, wanted):
        s.abs_()  # [·,H,rows,columns]
        of_row = s.sum(-1)
        here = in_query[examples, :, rows]  # [·,Gq,rows]
        flow[examples] += here[:, None] @ (s @ in_key[examples, None, columns])
        row_total[examples] += of_row @ here.mT
        matrix_total[examples] += of_row.sum(-1)
    return flow, row_total, matrix_total


@_flow.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, query_groups: Tensor, key_groups: Tensor,
    num_query_groups: int, num_key_groups: int, *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    shape = q.shape[:2]
    flow = lse.new_empty(*shape, num_query_groups, num_key_groups)
    return flow, lse.new_empty(*shape, num_query_groups), lse.new_empty(shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, causal, scale, key_range, window, saliency_probe, flow_probe, query_groups, key_groups = inputs
    ctx.save_for_backward(q, k, v, *output, key_range, query_groups, key_groups)
    ctx.form = (causal, scale, window)
    ctx.probes = [None if probe is None else (probe.dtype, probe.shape) for probe in (saliency_probe, flow_probe)]


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, key_range, query_groups, key_groups = ctx.saved_tensors
    causal, scale, window = ctx.form
    saliency_probe, flow_probe = ctx.probes
    form = (causal, scale, key_range, window)
    need = ctx.needs_input_grad
    grads: list[Tensor | None] = [None] * len(need)
    if any(need[:3]):
        grads[:3] = _attention_backward(grad_out, q, k, v, out, lse, *form)
    if saliency_probe is not None and need[7]:
        grads[7] = _saliency(q, k, v, grad_out, lse, *form).to(saliency_probe[0])
    if flow_probe is not None and need[8]:
        flow, _row, _matrix = _flow(
            q, k, v, grad_out, lse, query_groups, key_groups, flow_probe[1][2], flow_probe[1][3], False, *form
        )
        grads[8] = flow.to(flow_probe[0])
    return tuple(grads)


_attention.register_autograd(_backward, setup_context=_setup)
