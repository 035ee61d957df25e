"""Autograd of the SSD ops, which every implementation shares.

An implementation supplies four functions without derivatives (`Backend`); `register` makes differentiable ops of
torch.library from them. A compiled graph keeps each of these ops whole.
The probes have an op of their own, which leaves the output unchanged: the gradients of SSD take time linear in T but
saliency and flow take quadratic time, so the backward pass of SSD cannot give them at no extra cost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground.ops.common.flow import FlowSums, Groups
from symground.ops.common.probes import GradientProbes
from symground.ops.common.register import Derivative, Op, save, saved
from symground.ops.common.tensors import accumulation_dtype
from symground.ops.ssd.scan import Scan


class Gradients(NamedTuple):
    """Each is in the dtype of its input; that of the initial state is None if there is none."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    initial_state: Tensor | None


class Backend(NamedTuple):
    """The functions of an implementation.

    A position outside the scan's range counts as dt = 0, and x, B and dt are not read there, so they may be NaN. Its
    output is nevertheless C · h, with h the state at that position.

    Attributes:
        forward: (scan, initial_state [B,H,P,N] or None) → y [B,T,H,P] in the dtype of x, and the state after the last
            position [B,H,P,N] in the accumulation dtype.
        backward: (grad_y, grad_state or None, scan, initial_state) → the gradients.
        saliency: (scan, grad_y, signed) → [B,T,T] in the accumulation dtype.
        flow: (scan, grad_y, groups, matrix_total); if ``matrix_total`` is False, that sum may be anything.
    """

    forward: Callable[[Scan, Tensor | None], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor | None, Scan, Tensor | None], Gradients]
    saliency: Callable[[Scan, Tensor, bool], Tensor]
    flow: Callable[[Scan, Tensor, Groups, bool], FlowSums]


class Ops(NamedTuple):
    """An implementation of the public ops, which expects checked arguments."""

    ssd: Callable[[Scan, Tensor | None, GradientProbes], tuple[Tensor, Tensor]]
    ssd_saliency: Callable[[Scan, Tensor, bool], Tensor]
    ssd_flow: Callable[[Scan, Tensor, Groups, bool], FlowSums]
    probed: Callable[[Tensor, Scan, GradientProbes], Tensor]
    """y [B,T,H,P] with the probes applied."""
    refuses: Callable[[Tensor], Exception | None]


def register(impl: str, backend: Backend, refuses: Callable[[Tensor], Exception | None], cpu_only: bool = False) -> Ops:
    """Register ``backend`` as ``symground::ssd_<impl>`` and its companions."""
    op = partial(Op, impl=impl, cpu_only=cpu_only)

    backward = op(
        "ssd_backward", backend.backward, ["Tensor grad_y", "Tensor? grad_state", Scan, "Tensor? initial_state"],
        _gradients, returns=6, is_empty=lambda _grad_y, _grad_state, scan, *rest: _is_empty(scan),
    )  # fmt: skip
    forward = op(
        "ssd", backend.forward, [Scan, "Tensor? initial_state"], _outputs, returns=2, is_empty=_is_empty,
        derivative=Derivative(_keep, lambda ctx, needs, *grads: _through(backward, ctx, *grads)),
    )  # fmt: skip
    saliency = op(
        "ssd_saliency", backend.saliency, [Scan, "Tensor grad_y", "bool signed"], _saliency, is_empty=_is_empty
    )
    flow = op(
        "ssd_flow", backend.flow, [Scan, "Tensor grad_y", Groups, "bool matrix_total"], _flow, returns=3,
        is_empty=_is_empty,
    )  # fmt: skip
    probed = op(
        "ssd_probed", lambda y, *_: y.clone(), ["Tensor y", Scan, GradientProbes], lambda y, *_: torch.empty_like(y),
        derivative=Derivative(
            _keep_probes, lambda ctx, needs, grad_y: _through_probes(saliency, flow, ctx, needs, grad_y)
        ),
    )  # fmt: skip

    def run(scan: Scan, initial_state: Tensor | None, probes: GradientProbes) -> tuple[Tensor, Tensor]:
        y, state = forward(scan, initial_state)
        if probes.saliency is not None or probes.flow is not None:
            y = probed(y, scan, probes)
        return y, state

    return Ops(
        ssd=run,
        ssd_saliency=saliency,
        ssd_flow=lambda *args: FlowSums(*flow(*args)),
        probed=probed,
        refuses=refuses,
    )


# The ops' results where there is nothing to read.


def _is_empty(scan: Scan, *rest: Any) -> bool:
    return scan.x.numel() == 0


def _outputs(scan: Scan, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    x = scan.x
    batch, _, heads, size = x.shape
    return x.new_zeros(x.shape), x.new_zeros(batch, heads, size, scan.B.shape[3], dtype=accumulation_dtype(x))


def _gradients(
    grad_y: Tensor, grad_state: Tensor | None, scan: Scan, initial_state: Tensor | None
) -> tuple[Tensor | None, ...]:
    return *(z.new_zeros(z.shape) for z in scan[:5]), None if initial_state is None else torch.zeros_like(initial_state)


def _saliency(scan: Scan, grad_y: Tensor, signed: bool) -> Tensor:
    x = scan.x
    return x.new_zeros(x.shape[0], x.shape[1], x.shape[1], dtype=accumulation_dtype(x))


def _flow(scan: Scan, grad_y: Tensor, groups: Groups, matrix_total: bool) -> FlowSums:
    like = scan.x.new_zeros((), dtype=accumulation_dtype(scan.x))
    return FlowSums.zeros(like, (scan.x.shape[0], scan.x.shape[2]), groups)


def _keep(ctx: Any, output: tuple[Tensor, Tensor], scan: Scan, initial_state: Tensor | None) -> None:
    save(ctx, scan, initial_state)
    ctx.set_materialize_grads(False)  # no zeros for the final state, which a training step does not use


def _through(backward: Op, ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None) -> tuple[Any, Any]:
    scan, initial_state = saved(ctx)
    grad_y = torch.zeros_like(scan.x) if grad_y is None else grad_y
    *of_scan, of_state = backward(grad_y, grad_state, scan, initial_state)
    return (*of_scan, None), of_state


def _keep_probes(ctx: Any, output: Tensor, y: Tensor, scan: Scan, probes: GradientProbes) -> None:
    # The probes are not saved: saved-tensor hooks would materialise all of their values.
    save(ctx, scan, probes.groups)
    ctx.dtypes = probes.dtypes


def _through_probes(saliency: Op, flow: Op, ctx: Any, needs: list[Any], grad_y: Tensor) -> tuple[Any, ...]:
    scan, groups = saved(ctx)
    _, _, of = needs
    total = saliency(scan, grad_y, True).to(ctx.dtypes[0]) if of.saliency else None
    sums = flow(scan, grad_y, groups, False)[0].to(ctx.dtypes[1]) if of.flow else None
    return grad_y, None, GradientProbes(total, sums, None, None)
