"""One schema for every implementation of attention: plain kernels in, registered and differentiable ops out.

An implementation brings five functions without autograd (`Kernels`). Here they become torch.library ops, so that a
compiled graph keeps them whole, and saliency and flow become the gradients of the probes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground.ops._library import define
from symground.ops._mixing import Mixing
from symground.ops._precision import accumulation_dtype

#: What every op takes after its tensors; `Mixing.form` gives the values. gate is [B,H], in the dtype of lse.
_FORM = "Tensor? gate, bool causal, float scale, Tensor? key_range, int? window"
_GROUPS = "Tensor? query_groups, Tensor? key_groups, int num_query_groups, int num_key_groups"


class Kernels(NamedTuple):
    """What an implementation computes. ``*form`` is (gate, causal, scale, key_range, window).

    Attributes:
        forward: (q, k, v, *form) → out, gated, and lse. The output of a head whose gate is 0 is not computed.
        backward: (grad_out, q, k, v, out, lse, *form, saliency, query_groups, key_groups, num_query_groups,
            num_key_groups) → dq, dk, dv, and what it has in passing of the signed saliency [B,T,S] where ``saliency``
            and of the flow [B,H,Gq,Gk] where there are groups; None leaves it to the functions below.
        saliency: (q, k, v, grad_out, lse, *form, signed) → [B,T,S].
        flow: (q, k, v, grad_out, lse, *form, query_groups, key_groups, num_query_groups, num_key_groups, matrix) → F,
            row_total and matrix_total; without ``matrix`` the last may be anything.
        rows: (q, k, v, grad_out, lse, *form, rows [B,R]) → [B,H,R,S], signed.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor | None, ...]]
    saliency: Callable[..., Tensor]
    flow: Callable[..., tuple[Tensor, Tensor, Tensor]]
    rows: Callable[..., Tensor]

    def gradients(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any
    ) -> tuple[Tensor | None, ...]:
        """(…, *form, inputs, saliency, *groups) → dq, dk, dv where ``inputs``, saliency, flow; None for the unasked."""
        *form, inputs, saliency, query_groups, key_groups, num_query, num_key = rest
        groups = (query_groups, key_groups, num_query, num_key)
        dq = dk = dv = total = flow = None
        if inputs:
            dq, dk, dv, total, flow = self.backward(grad_out, q, k, v, out, lse, *form, saliency, *groups)
        if saliency and total is None:
            total = self.saliency(q, k, v, grad_out, lse, *form, True)
        if query_groups is not None and flow is None:
            flow, _row, _matrix = self.flow(q, k, v, grad_out, lse, *form, *groups, False)
        return dq, dk, dv, total, flow


class Registered(NamedTuple):
    """The implementations to put in the tables of the public ops."""

    attention: Callable[..., tuple[Tensor, Tensor]]
    saliency: Callable[..., Tensor]
    flow: Callable[..., tuple[Tensor, Tensor, Tensor | None]]
    rows: Callable[..., Tensor]


def register(name: str, kernels: Kernels, device_types: str | None) -> Registered:
    """Register ``kernels`` as ``symground::attention_<name>`` and its companions."""
    kernels = _of_any_size(kernels)

    def defined(op: str, function: Callable[..., Any], schema: str) -> Any:
        return define(op, name, function, schema, device_types)

    def all_gradients(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
        # A registered op returns tensors only: what was not asked is empty.
        return tuple(grad_out.new_empty(0) if x is None else x for x in kernels.gradients(grad_out, *args))

    forward = defined(
        "attention",
        lambda q, k, v, _saliency, _flow, _query, _key, *form: kernels.forward(q, k, v, *form),
        "(Tensor q, Tensor k, Tensor v, Tensor? saliency_probe, Tensor? flow_probe, Tensor? query_groups, "
        f"Tensor? key_groups, {_FORM}) -> (Tensor, Tensor)",
    )
    backward = defined(
        "attention_backward",
        all_gradients,
        f"(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_FORM}, bool inputs, bool saliency, "
        f"{_GROUPS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    )
    after = f"(Tensor q, Tensor k, Tensor v, Tensor grad_out, Tensor lse, {_FORM}"
    saliency = defined("attention_saliency", kernels.saliency, f"{after}, bool signed) -> Tensor")
    flow = defined("attention_flow", kernels.flow, f"{after}, {_GROUPS}, bool matrix) -> (Tensor, Tensor, Tensor)")
    rows = defined("attention_saliency_rows", kernels.rows, f"{after}, Tensor rows) -> Tensor")
    _fakes(forward, backward, saliency, flow, rows)
    forward.register_autograd(_backward_through(backward), setup_context=_setup)
    return Registered(*_entries(forward, saliency, flow, rows))


def _of_any_size(kernels: Kernels) -> Kernels:
    """``kernels``, which run only where there are queries and keys: without, output, gradients and saliency are 0."""

    def nothing(q: Tensor, k: Tensor) -> bool:
        return q.numel() == 0 or k.numel() == 0

    def forward(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        if not nothing(q, k):
            return kernels.forward(q, k, *rest)
        return q.new_zeros(q.shape), q.new_full(q.shape[:3], float("-inf"), dtype=accumulation_dtype(q))

    def backward(
        grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any
    ) -> tuple[Tensor | None, ...]:
        if not nothing(q, k):
            return kernels.backward(grad_out, q, k, v, out, lse, *rest)
        *_, saliency, query_groups, _key_groups, num_query, num_key = rest
        total = lse.new_zeros(q.shape[0], q.shape[2], k.shape[2]) if saliency else None
        flow = None if query_groups is None else lse.new_zeros(*q.shape[:2], num_query, num_key)
        return *(x.new_zeros(x.shape) for x in (q, k, v)), total, flow

    def saliency(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, *rest: Any) -> Tensor:
        if not nothing(q, k):
            return kernels.saliency(q, k, v, grad_out, lse, *rest)
        return lse.new_zeros(q.shape[0], q.shape[2], k.shape[2])

    def flow(
        q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not nothing(q, k):
            return kernels.flow(q, k, v, grad_out, lse, *rest)
        *_, num_query, num_key, _matrix = rest
        heads = q.shape[:2]
        return lse.new_zeros(*heads, num_query, num_key), lse.new_zeros(*heads, num_query), lse.new_zeros(heads)

    def rows(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, *rest: Any) -> Tensor:
        at = rest[-1]
        if at.numel() and not nothing(q, k):
            return kernels.rows(q, k, v, grad_out, lse, *rest)
        return lse.new_zeros(*q.shape[:2], at.shape[1], k.shape[2])

    return Kernels(forward, backward, saliency, flow, rows)


def _entries(forward: Any, saliency: Any, flow: Any, rows: Any) -> tuple[Callable[..., Any], ...]:
    """The registered ops, called as the tables of the public ops call an implementation."""

    def run_attention(
        q: Tensor, k: Tensor, v: Tensor, mixing: Mixing, saliency_probe: Tensor | None, flow_probe: Tensor | None,
        query_groups: Tensor | None, key_groups: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        gate = mixing.gate
        if gate is not None and gate.requires_grad and torch.is_grad_enabled():
            # Its gradient is ⟨dO, O⟩ of the head without its gate: the gate stays outside, every head is computed, and
            # the gradient that reaches the op is the gated one, as S wants it.
            form = mixing._replace(gate=None).form(q)
            out, lse = forward(q, k, v, saliency_probe, flow_probe, query_groups, key_groups, *form)
            return mixing.gated(out), lse.detach()
        out, lse = forward(q, k, v, saliency_probe, flow_probe, query_groups, key_groups, *mixing.form(q))
        return out, lse.detach()

    def run_saliency(
        q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, signed: bool, mixing: Mixing
    ) -> Tensor:
        total: Tensor = saliency(q, k, v, grad_out, lse, *mixing.form(q), signed)
        return total

    def run_flow(
        q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, query_groups: Tensor, key_groups: Tensor,
        num_query_groups: int, num_key_groups: int, matrix: bool, mixing: Mixing,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        groups = (query_groups, key_groups, num_query_groups, num_key_groups)
        sums, row_total, matrix_total = flow(q, k, v, grad_out, lse, *mixing.form(q), *groups, matrix)
        return sums, row_total, matrix_total if matrix else None

    def run_rows(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, at: Tensor, mixing: Mixing) -> Tensor:
        out: Tensor = rows(q, k, v, grad_out, lse, *mixing.form(q), at)
        return out

    return run_attention, run_saliency, run_flow, run_rows


def _fakes(forward: Any, backward: Any, saliency: Any, flow: Any, rows: Any) -> None:
    """Shapes and dtypes without values, for compiled graphs."""

    def like(x: Tensor) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @forward.register_fake  # type: ignore[untyped-decorator]
    def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return like(q), q.new_empty(q.shape[:3], dtype=accumulation_dtype(q))

    @backward.register_fake  # type: ignore[untyped-decorator]
    def _(
        grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any
    ) -> tuple[Tensor, ...]:
        *_, inputs, saliency, query_groups, _key_groups, num_query, num_key = rest
        none = grad_out.new_empty(0)
        return (
            *((like(q), like(k), like(v)) if inputs else (none, none.clone(), none.clone())),
            lse.new_empty(q.shape[0], q.shape[2], k.shape[2]) if saliency else none.clone(),
            none.clone() if query_groups is None else lse.new_empty(*q.shape[:2], num_query, num_key),
        )

    @saliency.register_fake  # type: ignore[untyped-decorator]
    def _(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, *_: Any) -> Tensor:
        return lse.new_empty(q.shape[0], q.shape[2], k.shape[2])

    @flow.register_fake  # type: ignore[untyped-decorator]
    def _(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        *_, num_query, num_key, _matrix = rest
        heads = q.shape[:2]
        return lse.new_empty(*heads, num_query, num_key), lse.new_empty(*heads, num_query), lse.new_empty(heads)

    @rows.register_fake  # type: ignore[untyped-decorator]
    def _(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, *rest: Any) -> Tensor:
        return lse.new_empty(q.shape[0], q.shape[1], rest[-1].shape[1], k.shape[2])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, saliency_probe, flow_probe, query_groups, key_groups, gate, causal, scale, key_range, window = inputs
    ctx.save_for_backward(q, k, v, *output, gate, key_range, query_groups, key_groups)
    ctx.form = (causal, scale, window)
    ctx.probes = [None if probe is None else (probe.dtype, probe.shape) for probe in (saliency_probe, flow_probe)]


def _backward_through(backward: Any) -> Callable[..., tuple[Tensor | None, ...]]:
    def run(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, gate, key_range, query_groups, key_groups = ctx.saved_tensors
        causal, scale, window = ctx.form
        saliency_probe, flow_probe = ctx.probes
        need = ctx.needs_input_grad
        inputs, saliency, flow = any(need[:3]), need[3], need[4]
        groups = (query_groups, key_groups, *flow_probe[1][2:]) if flow else (None, None, 0, 0)
        *of_inputs, of_saliency, of_flow = backward(
            grad_out, q, k, v, out, lse, gate, causal, scale, key_range, window, inputs, saliency, *groups
        )
        grads: list[Tensor | None] = [None] * len(need)
        if inputs:
            grads[:3] = of_inputs
        if saliency:
            grads[3] = of_saliency.to(saliency_probe[0])
        if flow:
            grads[4] = of_flow.to(flow_probe[0])
        return tuple(grads)

    return run
