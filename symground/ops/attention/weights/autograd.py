"""Autograd of what is read off attention weights, which every implementation shares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground.ops.attention.mixing import Mixing
from symground.ops.attention.weights import rows
from symground.ops.attention.weights.record import Asked, Read, Upstream
from symground.ops.attention.weights.rows import Gradients
from symground.ops.common.register import Derivative, Op, save, saved
from symground.ops.common.tensors import accumulation_dtype


class Backend(NamedTuple):
    """The functions of an implementation; their `Mixing` is resolved, and its gate None.

    Attributes:
        read: (q, k, lse, mixing, asked) → what is asked for, but rows, which are None.
        backward: (q, k, lse, upstream, mixing, asked, of_sink, of_slopes) → the gradients from mass, received and
            entropy, in any dtype.
        topk: (q, k, lse, mixing, count) → the largest weights of each row and their keys, [B,H,T,count].
    """

    read: Callable[[Tensor, Tensor, Tensor, Mixing, Asked], Read]
    backward: Callable[..., Gradients]
    topk: Callable[[Tensor, Tensor, Tensor, Mixing, int], tuple[Tensor, Tensor]]


class Ops(NamedTuple):
    """An implementation of the public ops, which expects checked arguments.

    All but ``attention_topk`` are one function: (q, k, lse, mixing, asked) → whatever is asked for, in one pass.
    """

    attention_rows: Callable[..., Read]
    attention_mass: Callable[..., Read]
    attention_received: Callable[..., Read]
    attention_summary: Callable[..., Read]
    attention_pooled: Callable[..., Read]
    attention_topk: Callable[..., tuple[Tensor, Tensor]]
    refuses: Callable[[Tensor], Exception | None]
    lacks: Callable[..., str | None] | None = None


def register(
    impl: str, backend: Backend, refuses: Callable[[Tensor], Exception | None], cpu_only: bool = False,
    lacks: Callable[..., str | None] | None = None,
) -> Ops:  # fmt: skip
    """Register ``backend`` as ``symground::attention_read_<impl>`` and its companions."""
    op = partial(Op, impl=impl, cpu_only=cpu_only, is_empty=_is_empty)
    given = ["Tensor q", "Tensor k", "Tensor lse"]

    def read(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, asked: Asked) -> Read:
        found = Read()
        if asked.grouped or asked.summary or asked.block:
            found = backend.read(q, k, lse, mixing, asked._replace(rows=None))
        if asked.rows is not None:
            found = found._replace(rows=rows.read(q, k, lse, mixing, asked.rows))
        return found

    def gradients(
        q: Tensor, k: Tensor, lse: Tensor, upstream: Upstream, mixing: Mixing, asked: Asked, of_sink: bool,
        of_slopes: bool,
    ) -> Gradients:  # fmt: skip
        of_record = of_sink, of_slopes
        found: list[Gradients] = []
        if upstream.grad_rows is not None and asked.rows is not None:
            found.append(rows.backward(q, k, lse, mixing, asked.rows, upstream.grad_rows, *of_record))
        if any(x is not None for x in upstream[1:]):
            found.append(backend.backward(q, k, lse, upstream, mixing, asked, *of_record))
        dq, dk, *of_mixing = (None if x is None else sum(rest, x) for x, *rest in zip(*found, strict=True))
        assert dq is not None
        assert dk is not None
        return Gradients(dq.to(q.dtype), dk.to(k.dtype), *of_mixing)

    backward = op(
        "attention_read_backward", gradients, [*given, Upstream, Mixing, Asked, "bool of_sink", "bool of_slopes"],
        _no_gradients, returns=4,
    )  # fmt: skip
    derivative = Derivative(_keep, lambda ctx, needs, *grads: _through(backward, ctx, needs, *grads))
    forward = op(
        "attention_read", read, [*given, Mixing, Asked], lambda q, k, lse, _, asked: Read.nothing(q, k, lse, asked),
        returns=9, derivative=derivative,
    )  # fmt: skip
    topk = op("attention_topk", backend.topk, [*given, Mixing, "int count"], _no_topk, returns=2)

    def attention_read(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, asked: Asked) -> Read:
        found = forward(q, k, lse.detach(), mixing.resolved(q), asked)
        given = [x if wanted else None for x, wanted in zip(found, asked.results, strict=True)]
        return Read(*given[:4], *(None if x is None else x.detach() for x in given[4:]))

    def attention_topk(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, count: int) -> tuple[Tensor, Tensor]:
        detached = Mixing._make(x.detach() if isinstance(x, Tensor) else x for x in mixing.resolved(q))
        weight, key = topk(q.detach(), k.detach(), lse.detach(), detached, count)
        return weight, key

    return Ops(*(attention_read,) * 5, attention_topk, refuses, lacks)


def _is_empty(q: Tensor, k: Tensor, *rest: Any) -> bool:
    return q.numel() == 0 or k.numel() == 0


def _no_gradients(
    q: Tensor, k: Tensor, lse: Tensor, upstream: Upstream, mixing: Mixing, asked: Asked, of_sink: bool, of_slopes: bool
) -> Gradients:
    of_record = (
        lse.new_zeros(q.shape[1], dtype=accumulation_dtype(lse)) if wanted else None for wanted in (of_sink, of_slopes)
    )
    return Gradients(q.new_zeros(q.shape), k.new_zeros(k.shape), *of_record)


def _no_topk(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, count: int) -> tuple[Tensor, Tensor]:
    shape = (*q.shape[:3], count)
    return lse.new_zeros(shape), torch.full(shape, -1, dtype=torch.int64, device=q.device)


def _keep(ctx: Any, output: Any, q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, asked: Asked) -> None:
    save(ctx, q, k, lse, mixing, asked)
    ctx.set_materialize_grads(False)


def _through(backward: Op, ctx: Any, needs: list[Any], *grads: Tensor | None) -> tuple[Any, ...]:
    q, k, lse, mixing, asked = saved(ctx)
    # No gradient flows through the other results.
    upstream = Upstream(*(grad if found else None for grad, found in zip(grads[:4], asked.results[:4], strict=True)))
    if all(x is None for x in upstream):
        return (None,) * len(needs)
    of_mixing = needs[3]
    of = Gradients(*backward(q, k, lse, upstream, mixing, asked, bool(of_mixing.sink), bool(of_mixing.slopes)))
    return of.q, of.k, None, Mixing(sink=of.sink, slopes=of.slopes), None
