"""The ``cpu`` implementation: PyTorch's own flash attention where nothing else is asked, else rows of tiles."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground.ops import _cpu_tiles, _extension
from symground.ops._cpu_plan import ROW, Group, groups, one_range, rectangles
from symground.ops._layout import adjacent
from symground.ops._mixing import Mixing
from symground.ops._precision import accumulation_dtype, with_positive_scale
from symground.ops._registered import Kernels, register
from symground.ops.mask import valid_keys

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _inner() -> ModuleType:
    """What computes saliency, flow and gradients: the C++ extension where it is built, else plain PyTorch."""
    return _cpu_tiles if _extension.library is None else _extension


def _forward(
    q: Tensor, k: Tensor, v: Tensor,
    gate: Tensor | None, causal: bool, scale: float, key_range: Tensor | None, window: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    # The flash kernel computes a closed head like any other. The extension does not, and takes the same time for an
    # open one; but half precision it would convert, and all heads in bfloat16 are done before half of them in float32.
    if gate is not None and _extension.library is not None and q.dtype == accumulation_dtype(q):
        return _extension.forward(q, k, v, gate, causal, scale, key_range, window)
    q, scale = with_positive_scale(q, scale)
    out = lse = None
    for part in _parts(q, k, v, causal, key_range, window):
        bias = None if part.valid is None else _additive(part.valid, q)
        given = (adjacent(x) for x in (part.q, part.k, part.v))
        o, m = _flash(*given, 0.0, part.causal, attn_mask=bias, scale=scale)
        if part.valid is not None:
            empty = ~part.valid.any(-1)  # that kernel gives them a log-sum-exp of 0
            o, m = o.masked_fill(empty[..., None], 0.0), m.masked_fill(empty, float("-inf"))
        if o.shape == q.shape:  # all there is: no need to put it together
            out, lse = o, m
            break
        out, lse = _unseeing(q) if out is None or lse is None else (out, lse)
        out[part.examples, :, part.queries], lse[part.examples, :, part.queries] = o, m
    out, lse = _unseeing(q) if out is None or lse is None else (out, lse)
    return Mixing(causal, scale, key_range, window, gate).gated(out).contiguous(), lse.contiguous()


class _Part(NamedTuple):
    """A call of the flash kernel, which knows causal from the corner and a mask, but no ranges of keys."""

    examples: slice
    queries: slice
    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool
    valid: Tensor | None  # bool [examples or 1, 1, queries, keys]


def _parts(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, key_range: Tensor | None, window: int | None
) -> Iterator[_Part]:
    """Views wherever possible; only short examples of different ranges are copied, to go in one call."""
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    together = batch if one_range(key_range) else ROW // max(1, heads * queries * keys)
    for group in groups(q, k, key_range, None, together):
        at, low, high, bounds = group.examples, group.low, group.high, group.bounds
        if bounds is not None:
            valid = valid_keys(queries, keys, causal, bounds, window, q.device)[..., low:high]
            yield _Part(at, slice(0, queries), q[at], group.readable(k), group.readable(v), False, valid)
            continue
        for rows, columns, from_corner, mask in rectangles(queries, keys, causal, low, high, window):
            part = (q[at, :, rows], k[at, :, columns], v[at, :, columns])
            yield _Part(at, rows, *part, from_corner, None if mask is None else mask[None, None])


def _unseeing(q: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of queries that see no key."""
    return torch.zeros(q.shape, dtype=q.dtype), torch.full(q.shape[:3], float("-inf"), dtype=accumulation_dtype(q))


def _additive(valid: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(valid.shape, dtype=like.dtype).masked_fill_(~valid, float("-inf"))


def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    gate: Tensor | None, causal: bool, scale: float, key_range: Tensor | None, window: int | None,
    saliency: bool, query_groups: Tensor | None, *rest: Any,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    # What aten's kernel takes: it masks before it scales.
    plain = gate is None and key_range is None and window is None and scale > 0
    plain = plain and (not causal or q.shape[2] == k.shape[2])
    if plain and not saliency and query_groups is None:
        given = (adjacent(x) for x in (grad_out, q, k, v))
        grads = _flash_backward(*given, out, lse, 0.0, causal, scale=scale)
        return *(x.contiguous() for x in grads), None, None
    # One pass for gradients, saliency and flow; and aten's flash would want a mask of size B·T·S.
    form = (gate, causal, scale, key_range, window)
    everything: tuple[Tensor | None, ...] = _inner().backward(
        q, k, v, grad_out, lse, *form, saliency, query_groups, *rest
    )
    return everything


def _saliency(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, *rest: Any) -> Tensor:
    *form, signed = rest
    total: Tensor = _inner().saliency(q, k, v, grad_out, lse, *form)
    return total if signed else total.abs_()


def _flow(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    sums: tuple[Tensor, Tensor, Tensor] = _inner().flow(*args)
    return sums


def _rows(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor,
    gate: Tensor | None, causal: bool, scale: float, key_range: Tensor | None, window: int | None, rows: Tensor,
) -> Tensor:  # fmt: skip
    """S of the chosen queries only: [B,H,R,S]."""
    (batch, heads, queries, size), keys, count = q.shape, k.shape[2], rows.shape[1]
    at = rows.long()[:, None, :]  # [B,1,R]
    last = at[:, 0, :, None] + (keys - queries)  # [B,R,1]
    of_row = lse.take_along_dim(at, 2)[..., None]
    of_row = of_row.masked_fill(of_row.isneginf(), 0.0)  # rows without a key: -inf + inf would be NaN
    chosen_q, chosen_grad = (x.take_along_dim(at[..., None], 2).to(lse.dtype) for x in (q, grad_out))  # [B,H,R,D]
    chosen_grad = Mixing(causal, scale, key_range, window, gate).gated(chosen_grad)
    out = lse.new_zeros(batch, heads, count, keys)
    together = batch if one_range(key_range) else ROW // max(1, heads * count * keys)
    for group in groups(q, k, key_range, gate, together):
        here = group.examples, group.heads

        def product(x: Tensor, y: Tensor, group: Group = group) -> Tensor:
            x, y = x[group.examples, group.heads], group.readable(y).to(lse.dtype)  # [·,Hk,C,D]
            folded = x.reshape(*y.shape[:2], -1, size)  # [·,Hk,H/Hk·R,D]
            return (folded @ y.mT).view(*x.shape[:3], y.shape[2])

        s = product(chosen_q, k).mul_(scale).sub_(of_row[here])
        j, upto = torch.arange(group.low, group.high), last[group.examples]
        unseen = (j > upto) if causal else torch.zeros_like(j > upto)
        if window is not None:
            unseen |= j <= upto - window
        if group.bounds is not None:
            unseen |= group.outside()[:, None]
        _cpu_tiles.normalize_(s.exp_().masked_fill_(unseen[:, None], 0.0), of_row[here][..., 0])
        out[*here, :, group.low : group.high] = s.mul_(product(chosen_grad, v))
    return out


cpu_kernels = Kernels(_forward, _backward, _saliency, _flow, _rows)
cpu = register("cpu", cpu_kernels, "cpu")
