"""The ``cpu`` implementation: PyTorch's own flash attention if only its results are needed, else rows of tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from symground.ops.attention import cpu_extension, tiles
from symground.ops.attention.autograd import Backend, Gradients, register
from symground.ops.attention.mixing import Mixing
from symground.ops.attention.plan import ROW, groups, one_range, rectangles
from symground.ops.common import extension, needs
from symground.ops.common.flow import FlowSums, Groups
from symground.ops.common.tensors import accumulation_dtype, adjacent, with_positive_scale

refuses = needs.cpu

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


#: `tiles` with this last argument follow the values of key ranges and gates, which a CPU reads without waiting.
_READS = True


def _forward(q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
    # The flash kernel also computes heads with gate 0. The extension skips them and takes the same time for the others.
    # It would convert half precision to float32, though, and half of the heads in float32 take longer than all heads in
    # bfloat16.
    beyond = _beyond_flash(q, v, mixing)
    if (beyond or mixing.gate is not None) and extension.is_built() and q.dtype == accumulation_dtype(q):
        return cpu_extension.forward(q, k, v, mixing)
    if beyond:
        return tiles.forward(q, k, v, mixing, _READS)
    q, scale = with_positive_scale(q, mixing.scale_of(q))
    out = lse = None
    for part in _parts(q, k, v, mixing):
        bias = None if part.valid is None else _additive(part.valid, q)
        given = (adjacent(x) for x in (part.q, part.k, part.v))
        o, m = _flash(*given, 0.0, part.causal, attn_mask=bias, scale=scale)
        if part.valid is not None:
            empty = ~part.valid.any(-1)  # the flash kernel gives these rows a log-sum-exp of 0
            o, m = o.masked_fill(empty[..., None], 0.0), m.masked_fill(empty, float("-inf"))
        if o.shape == q.shape:  # the only part: nothing to put together
            out, lse = o, m
            break
        out, lse = _unseeing(q) if out is None or lse is None else (out, lse)
        out[part.examples, :, part.queries], lse[part.examples, :, part.queries] = o, m
    out, lse = _unseeing(q) if out is None or lse is None else (out, lse)
    return mixing.gated(out).contiguous(), lse.contiguous()


def _beyond_flash(q: Tensor, v: Tensor, mixing: Mixing) -> bool:
    """Whether aten's flash kernels lack something that the call needs, beside gates and masks."""
    return mixing.extended or v.shape[3] != q.shape[3]


class _Part(NamedTuple):
    """A call of the flash kernel, which takes a mask or causal=True (aligned top-left), but no key ranges."""

    examples: slice
    queries: slice
    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool
    valid: Tensor | None  # bool [examples or 1, 1, queries, keys]


def _parts(q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> Iterator[_Part]:
    """Views wherever possible; only short examples with different key ranges are copied, to be computed in one call."""
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    every_head = mixing if mixing.gate is None else mixing._replace(gate=None)
    if every_head.only_causal and (not mixing.causal or queries == keys):
        yield _Part(slice(None), slice(None), q, k, v, mixing.causal, None)  # the usual call, without planning it
        return
    max_examples = batch if one_range(mixing.key_range) else ROW // max(1, heads * queries * keys)
    for group in groups(q, k, every_head, max_examples):
        at, low, high, bounds = group.examples, group.low, group.high, group.bounds
        if bounds is not None:
            valid = mixing._replace(key_range=bounds).valid(q, k)[..., low:high]
            yield _Part(at, slice(0, queries), q[at], group.without_padding(k), group.without_padding(v), False, valid)
            continue
        for rows, columns, from_corner, mask in rectangles(queries, keys, mixing, low, high):
            part = (q[at, :, rows], k[at, :, columns], v[at, :, columns])
            yield _Part(at, rows, *part, from_corner, None if mask is None else mask[None, None])


def _unseeing(q: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of queries that see no key."""
    return torch.zeros(q.shape, dtype=q.dtype), torch.full(q.shape[:3], float("-inf"), dtype=accumulation_dtype(q))


def _additive(valid: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(valid.shape, dtype=like.dtype).masked_fill_(~valid, float("-inf"))


def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mixing: Mixing,
    of_slopes: bool, saliency: bool, groups: Groups,
) -> Gradients:  # fmt: skip
    # aten's backward kernel masks before it scales, so a scale must be above 0.
    scale = mixing.scale_of(q)
    plain = mixing.only_causal and scale > 0 and (not mixing.causal or q.shape[2] == k.shape[2])
    if plain and not _beyond_flash(q, v, mixing) and not saliency and groups.query is None:
        given = (adjacent(x) for x in (grad_out, q, k, v))
        dq, dk, dv = _flash_backward(*given, out, lse, 0.0, mixing.causal, scale=scale)
        return Gradients(dq.contiguous(), dk.contiguous(), dv.contiguous(), None, None)
    # One pass gives gradients, saliency and flow, and aten's flash kernel would need a mask of size B·T·S.
    if extension.is_built():
        return cpu_extension.backward(q, k, v, grad_out, lse, mixing, of_slopes, saliency, groups)
    return tiles.backward(q, k, v, grad_out, lse, mixing, of_slopes, saliency, groups, _READS)


def _saliency(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, signed: bool) -> Tensor:
    if extension.is_built():
        total = cpu_extension.saliency(q, k, v, grad_out, lse, mixing)
    else:
        total = tiles.saliency(q, k, v, grad_out, lse, mixing, _READS)
    return total if signed else total.abs_()


def _flow(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, groups: Groups, matrix_total: bool
) -> FlowSums:
    if extension.is_built():
        return cpu_extension.flow(q, k, v, grad_out, lse, mixing, groups, matrix_total)
    return tiles.flow(q, k, v, grad_out, lse, mixing, groups, matrix_total, _READS)


def _rows(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, rows: Tensor) -> Tensor:
    return tiles.of_rows(q, k, v, grad_out, lse, mixing, rows, _READS)


backend = Backend(forward=_forward, backward=_backward, saliency=_saliency, flow=_flow, rows=_rows)
ops = register("cpu", backend, refuses, cpu_only=True)
