"""What is read off attention weights, by the C++ extension: as `tiles`, one head at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from symground.ops.attention.cpu_extension import record_arguments
from symground.ops.attention.mixing import Mixing
from symground.ops.attention.weights.record import Asked, Read, Upstream
from symground.ops.attention.weights.rows import Gradients
from symground.ops.common import extension
from symground.ops.common.tensors import accumulation_dtype


def read(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, asked: Asked) -> Read:
    """As `tiles.read`."""
    exact = lse.to(accumulation_dtype(lse))
    found = Read.nothing(q, k, exact, asked)
    for at in _pieces(q, exact):
        results = (None if x is None else x[at] for x in found[1:])
        extension.library.attention_weights(
            *_piece(at, q, k, exact, mixing, asked), *results, asked.block, asked.largest
        )
    return found.to(lse.dtype)


def backward(
    q: Tensor, k: Tensor, lse: Tensor, upstream: Upstream, mixing: Mixing, asked: Asked, of_sink: bool, of_slopes: bool
) -> Gradients:
    """As `tiles.backward`."""
    exact = lse.to(accumulation_dtype(lse))
    dq, dk = (torch.zeros(x.shape, dtype=exact.dtype) for x in (q, k))
    dsink, dslopes = (exact.new_zeros(q.shape[:2]) if wanted else None for wanted in (of_sink, of_slopes))
    given = [None if x is None else x.to(exact.dtype).contiguous() for x in upstream[1:]]
    for at in _pieces(q, exact):
        parts = [None if x is None else x[at] for x in (*given, dq, dk, dsink, dslopes)]
        extension.library.attention_weights_backward(*_piece(at, q, k, exact, mixing, asked), *parts)
    return Gradients(dq, dk, *(None if x is None else x.sum(0) for x in (dsink, dslopes)))


def _pieces(q: Tensor, lse: Tensor) -> list[slice]:
    """The whole batch, or one example at a time if q and k must be converted, so that only one example is copied."""
    return [slice(None)] if q.dtype == lse.dtype else [slice(b, b + 1) for b in range(q.shape[0])]


def _piece(at: slice, q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, asked: Asked) -> list[Any]:
    """The operators' first arguments for these examples, in the dtype of lse."""
    groups = [None if ids is None else ids[at].to(torch.int32).contiguous() for ids in (asked.query, asked.key)]
    record = record_arguments(mixing if at == slice(None) else mixing.of(at), lse)
    return [q[at].to(lse.dtype), k[at].to(lse.dtype), lse[at].contiguous(), *record[1:], *groups]  # without a gate
