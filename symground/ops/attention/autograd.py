"""Autograd of the attention ops, which every implementation shares.

An implementation supplies five functions without derivatives (`Backend`); `register` makes differentiable ops of
torch.library from them. A compiled graph keeps each of these ops whole. Saliency and flow are gradients of the probes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground.ops.attention.mixing import Mixing
from symground.ops.common.flow import NO_GROUPS, FlowSums, Groups
from symground.ops.common.probes import GradientProbes
from symground.ops.common.register import Derivative, Op, save, saved
from symground.ops.common.tensors import accumulation_dtype


class Gradients(NamedTuple):
    """The results of a backward pass; None for those that were not requested."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    saliency: Tensor | None  # [B,T,S], signed
    flow: Tensor | None  # [B,H,Gq,Gk]
    slopes: Tensor | None = None  # [H]
    sink: Tensor | None = None  # [H]


class Backend(NamedTuple):
    """The functions of an implementation; their `Mixing` is resolved.

    Attributes:
        forward: (q, k, v, mixing) → out, gated, and lse. The output of a head whose gate is 0 is not computed.
        backward: (grad_out, q, k, v, out, lse, mixing, of_slopes, saliency, groups) → the gradients of q, k and v, and
            of the slopes if ``of_slopes``. It may also give the saliency if ``saliency`` and the flow if there are
            groups; where it gives None, the functions below compute them.
        saliency: (q, k, v, grad_out, lse, mixing, signed) → [B,T,S].
        flow: (q, k, v, grad_out, lse, mixing, groups, matrix_total); if ``matrix_total`` is False, that sum
            may be anything.
        rows: (q, k, v, grad_out, lse, mixing, rows [B,R]) → [B,H,R,S], signed.
    """

    forward: Callable[[Tensor, Tensor, Tensor, Mixing], tuple[Tensor, Tensor]]
    backward: Callable[..., Gradients]
    saliency: Callable[..., Tensor]
    flow: Callable[..., FlowSums]
    rows: Callable[..., Tensor]

    def gradients(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mixing: Mixing, of_qkv: bool,
        of_slopes: bool, of_sink: bool, saliency: bool, groups: Groups,
    ) -> Gradients:  # fmt: skip
        """The gradients of q, k, v if ``of_qkv`` and of slopes too if ``of_slopes``; the others if asked for."""
        found = Gradients(None, None, None, None, None)
        if of_qkv:
            found = self.backward(grad_out, q, k, v, out, lse, mixing, of_slopes, saliency, groups)
        if of_sink and mixing.sink is not None:
            found = found._replace(sink=_of_sink(mixing.sink, grad_out, out, lse))
        if saliency and found.saliency is None:
            found = found._replace(saliency=self.saliency(q, k, v, grad_out, lse, mixing, True))
        if groups.query is not None and found.flow is None:
            found = found._replace(flow=self.flow(q, k, v, grad_out, lse, mixing, groups, False).flow)
        return found


class Ops(NamedTuple):
    """An implementation of the public ops, which expects checked arguments."""

    attention: Callable[[Tensor, Tensor, Tensor, Mixing, GradientProbes], tuple[Tensor, Tensor]]
    attention_saliency: Callable[..., Tensor]
    attention_saliency_rows: Callable[..., Tensor]
    attention_flow: Callable[..., FlowSums]
    refuses: Callable[[Tensor], Exception | None]
    lacks: Callable[..., str | None] | None = None
    declines: Callable[..., str | None] | None = None


def register(
    impl: str, backend: Backend, refuses: Callable[[Tensor], Exception | None], cpu_only: bool = False,
    lacks: Callable[..., str | None] | None = None, declines: Callable[..., str | None] | None = None,
) -> Ops:  # fmt: skip
    """Register ``backend`` as ``symground::attention_<impl>`` and its companions."""
    op = partial(Op, impl=impl, cpu_only=cpu_only, is_empty=_is_empty)

    def without_probes(
        q: Tensor, k: Tensor, v: Tensor, probes: GradientProbes, mixing: Mixing
    ) -> tuple[Tensor, Tensor]:
        return backend.forward(q, k, v, mixing)

    qkv = ["Tensor q", "Tensor k", "Tensor v"]
    after = [*qkv, "Tensor grad_out", "Tensor lse", Mixing]
    taken = [
        "Tensor grad_out",
        *qkv,
        "Tensor out",
        "Tensor lse",
        Mixing,
        "bool of_qkv",
        "bool of_slopes",
        "bool of_sink",
        "bool saliency",
        Groups,
    ]
    backward = op(
        "attention_backward", backend.gradients, taken, _gradients, returns=7,
        is_empty=lambda _, q, k, *rest: _is_empty(q, k),
    )  # fmt: skip
    derivative = Derivative(_keep, lambda ctx, needs, grad_out, _: _through(backward, ctx, needs, grad_out))
    forward = op(
        "attention", without_probes, [*qkv, GradientProbes, Mixing], _outputs, returns=2, derivative=derivative
    )
    saliency = op("attention_saliency", backend.saliency, [*after, "bool signed"], _saliency)
    flow = op("attention_flow", backend.flow, [*after, Groups, "bool matrix_total"], _flow, returns=3)
    rows = op(
        "attention_saliency_rows", backend.rows, [*after, "Tensor rows"], _rows,
        is_empty=lambda q, k, *rest: _is_empty(q, k) or rest[-1].numel() == 0,
    )  # fmt: skip

    def attention(q: Tensor, k: Tensor, v: Tensor, mixing: Mixing, probes: GradientProbes) -> tuple[Tensor, Tensor]:
        if mixing.gate is not None and mixing.gate.requires_grad and torch.is_grad_enabled():
            # The gate's gradient is ⟨dO, O⟩ with the ungated O. So the gate is applied outside the op, every head is
            # computed, and the op receives the gated gradient, as the definition of S requires.
            out, lse = forward(q, k, v, probes, mixing._replace(gate=None).resolved(q))
            return mixing.gated(out), lse.detach()
        out, lse = forward(q, k, v, probes, mixing.resolved(q))
        return out, lse.detach()

    def resolved(run: Op) -> Callable[..., Any]:
        return lambda q, k, v, grad_out, lse, mixing, *rest: run(q, k, v, grad_out, lse, mixing.resolved(q), *rest)

    run_flow = resolved(flow)
    return Ops(
        attention=attention,
        attention_saliency=resolved(saliency),
        attention_saliency_rows=resolved(rows),
        attention_flow=lambda *args: FlowSums(*run_flow(*args)),
        refuses=refuses,
        lacks=lacks,
        declines=declines,
    )


# The ops' results where there is nothing to read: no query, no key, or no row requested.


def _is_empty(q: Tensor, k: Tensor, *rest: Any) -> bool:
    return q.numel() == 0 or k.numel() == 0


def _outputs(q: Tensor, k: Tensor, v: Tensor, probes: GradientProbes, mixing: Mixing) -> tuple[Tensor, Tensor]:
    lse = q.new_full(q.shape[:3], float("-inf"), dtype=accumulation_dtype(q))
    if mixing.sink is not None:
        lse = mixing.sink[:, None].expand(q.shape[:3]).clone()
    return q.new_zeros(*q.shape[:3], v.shape[3]), lse


def _gradients(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mixing: Mixing, of_qkv: bool,
    of_slopes: bool, of_sink: bool, saliency: bool, groups: Groups,
) -> Gradients:  # fmt: skip
    dq, dk, dv = (x.new_zeros(x.shape) if of_qkv else None for x in (q, k, v))
    total = lse.new_zeros(q.shape[0], q.shape[2], k.shape[2]) if saliency else None
    flow = None if groups.query is None else lse.new_zeros(*q.shape[:2], groups.num_query, groups.num_key)
    dslopes, dsink = (lse.new_zeros(q.shape[1]) if wanted else None for wanted in (of_slopes, of_sink))
    return Gradients(dq, dk, dv, total, flow, dslopes, dsink)


def _saliency(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, signed: bool) -> Tensor:
    return lse.new_zeros(q.shape[0], q.shape[2], k.shape[2])


def _flow(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, groups: Groups, matrix_total: bool
) -> FlowSums:
    return FlowSums.zeros(lse, q.shape[:2], groups)


def _rows(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, mixing: Mixing, rows: Tensor) -> Tensor:
    return lse.new_zeros(*q.shape[:2], rows.shape[1], k.shape[2])


def _keep(
    ctx: Any, output: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor, probes: GradientProbes, mixing: Mixing
) -> None:
    # The probes are not saved: saved-tensor hooks would materialise all of their values.
    save(ctx, q, k, v, *output, mixing, probes.groups)
    ctx.dtypes = probes.dtypes
    ctx.set_materialize_grads(False)  # no zeros for the log-sum-exp, which has no gradient


def _through(backward: Op, ctx: Any, needs: list[Any], grad_out: Tensor | None) -> tuple[Any, ...]:
    if grad_out is None:
        return (None,) * len(needs)
    *given, groups = saved(ctx)
    of_q, of_k, of_v, of, of_mixing = needs
    groups = groups if of.flow else NO_GROUPS
    of_qkv = of_q or of_k or of_v or of_mixing.slopes
    of_slopes, of_sink = bool(of_mixing.slopes), bool(of_mixing.sink)
    found = Gradients(*backward(grad_out, *given, of_qkv, of_slopes, of_sink, of.saliency, groups))
    of_saliency = found.saliency.to(ctx.dtypes[0]) if of.saliency and found.saliency is not None else None
    of_flow = found.flow.to(ctx.dtypes[1]) if of.flow and found.flow is not None else None
    probes, of_record = GradientProbes(of_saliency, of_flow, None, None), Mixing(sink=found.sink, slopes=found.slopes)
    return found.q, found.k, found.v, probes, of_record


def _of_sink(sink: Tensor, grad_out: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    """-Σ_i e^(sink - LSE_i) · ⟨dO_i, O_i⟩ [H]: the sink has that weight in row i, and no value."""
    of_row = (grad_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1)
    return -((sink[:, None] - lse).exp() * of_row).sum((0, 2))
