"""Attention by the C++ extension, if it is built. It computes what `tiles` computes, one head at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from symground.ops.attention.autograd import Gradients
from symground.ops.attention.mixing import Mixing
from symground.ops.common import extension
from symground.ops.common.flow import FlowSums, Groups
from symground.ops.common.tensors import accumulation_dtype


def forward(q: Tensor, k: Tensor, v: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
    """out, gated, and lse, for inputs in float32 or float64."""
    out, lse = q.new_zeros(*q.shape[:3], v.shape[3]), q.new_full(q.shape[:3], float("-inf"))
    if mixing.sink is not None:
        lse[:] = mixing.sink[:, None]  # of queries that see no key
    extension.library.attention_forward(q, k, v, *record_arguments(mixing, lse), out, lse)
    return out, lse


def saliency(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing) -> Tensor:
    """As `tiles.saliency`."""
    exact = lse.to(accumulation_dtype(lse))
    total = exact.new_zeros(q.shape[0], q.shape[2], k.shape[2])
    for at in _pieces(q, exact):
        extension.library.attention_saliency(*_piece(at, q, k, v, grad_out, exact, mixing), total[at])
    return total.to(lse.dtype)


def flow(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, groups: Groups, matrix_total: bool
) -> FlowSums:
    """As `tiles.flow`."""
    exact = lse.to(accumulation_dtype(lse))
    sums = FlowSums.zeros(exact, exact.shape[:2], groups)
    for at in _pieces(q, exact):
        extension.library.attention_flow(
            *_piece(at, q, k, v, grad_out, exact, mixing), *_ids(groups, at), sums.flow[at], sums.row_total[at],
            sums.matrix_total[at] if matrix_total else None,
        )  # fmt: skip
    return FlowSums(*(x.to(lse.dtype) for x in sums))


def backward(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, of_slopes: bool,
    saliency: bool, groups: Groups,
) -> Gradients:  # fmt: skip
    """As `tiles.backward`."""
    dq, dk, dv = grads = [torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v)]
    total = lse.new_zeros(q.shape[0], q.shape[2], k.shape[2]) if saliency else None
    sums = None if groups.query is None else lse.new_zeros(*q.shape[:2], groups.num_query, groups.num_key)
    dslopes = lse.new_zeros(q.shape[:2]) if of_slopes else None
    for at in _pieces(q, lse):
        precise = [x[at].to(lse.dtype) for x in grads]  # a copy only of half precision
        extension.library.attention_backward(
            *_piece(at, q, k, v, grad_out, lse, mixing), *precise,
            *(None if x is None else x[at] for x in (dslopes, total)), *_ids(groups, at),
            None if sums is None else sums[at],
        )  # fmt: skip
        if q.dtype != lse.dtype:
            for x, exact in zip(grads, precise, strict=True):
                x[at] = exact
    return Gradients(dq, dk, dv, total, sums, None if dslopes is None else dslopes.sum(0))


def _pieces(q: Tensor, lse: Tensor) -> list[slice]:
    """The whole batch, or one example at a time if q, k and v must be converted, so that only one example is copied."""
    return [slice(None)] if q.dtype == lse.dtype else [slice(b, b + 1) for b in range(q.shape[0])]


def _piece(at: slice, q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing) -> list[Any]:
    """The operators' arguments for these examples, in the dtype of lse."""
    converted = (x[at].to(lse.dtype) for x in (q, k, v, grad_out))
    return [*converted, lse[at].contiguous(), *record_arguments(mixing if at == slice(None) else mixing.of(at), lse)]


def record_arguments(mixing: Mixing, lse: Tensor) -> list[Any]:
    """The record as arguments of the operators."""
    gate, sink, slopes = (
        None if x is None else x.to(lse.dtype).contiguous() for x in (mixing.gate, mixing.sink, mixing.slopes)
    )
    key_range, segments, blocks = (
        None if x is None else x.long().contiguous() for x in (mixing.key_range, mixing.segments, mixing.blocks)
    )
    masks = (mixing.causal, mixing.scale, key_range, mixing.window)
    return [gate, *masks, mixing.softcap, sink, slopes, segments, blocks]


def _ids(groups: Groups, at: slice) -> list[Tensor | None]:
    return [None if ids is None else ids[at].to(torch.int32).contiguous() for ids in (groups.query, groups.key)]
