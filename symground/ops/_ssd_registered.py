"""One schema for every implementation of SSD: plain kernels in, registered and differentiable ops out.

An implementation brings four functions without autograd (`SSDKernels`). Here they become torch.library ops, so that a
compiled graph keeps them whole. The probes sit on the output, as an op that changes nothing on the way forward: the
gradients of SSD take time linear in T, saliency and flow quadratic, so that neither has anything to give the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground.ops._library import define
from symground.ops._precision import accumulation_dtype

#: x [B,T,H,P], dt [B,T,H], A [H], B and C [B,T,G,N], key_range [B,2]; any strides, dtypes may differ.
_INPUTS = "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? key_range"
_GROUPS = "Tensor? query_groups, Tensor? key_groups, int num_query_groups, int num_key_groups"


class SSDKernels(NamedTuple):
    """What an implementation computes. ``*inputs`` is (x, dt, A, B, C, key_range).

    A position outside ``key_range`` counts as dt = 0, and neither x, B nor dt is read there (NaN does not leak): its
    output is C · h all the same, h the state that it finds.

    Attributes:
        forward: (*inputs, initial_state [B,H,P,N] or None) → y [B,T,H,P] in the dtype of x, and the state after the
            last position [B,H,P,N] in the accumulation dtype.
        backward: (grad_y, grad_state or None, *inputs, initial_state) → the gradients of x, dt, A, B, C, each in the
            dtype of its own, and of initial_state, None where there is none.
        saliency: (*inputs, grad_y, signed) → [B,T,T] in the accumulation dtype.
        flow: (*inputs, grad_y, query_groups, key_groups, num_query_groups, num_key_groups, matrix) → F [B,H,Gq,Gk],
            row_total [B,H,Gq] and matrix_total [B,H]; without ``matrix`` the last may be anything.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor | None, ...]]
    saliency: Callable[..., Tensor]
    flow: Callable[..., tuple[Tensor, Tensor, Tensor]]


class Registered(NamedTuple):
    """The implementations to put in the tables of the public ops."""

    ssd: Callable[..., tuple[Tensor, Tensor]]
    """(*inputs, initial_state, saliency_probe, flow_probe, query_groups, key_groups) → y and the final state."""
    saliency: Callable[..., Tensor]
    flow: Callable[..., tuple[Tensor, Tensor, Tensor | None]]
    probed: Callable[..., Tensor]
    """(y, *inputs, saliency_probe, flow_probe, query_groups, key_groups) → y, with the probes on it."""


def register(name: str, kernels: SSDKernels, device_types: str | None) -> Registered:
    """Register ``kernels`` as ``symground::ssd_<name>`` and its companions."""
    kernels = _of_any_size(kernels)

    def defined(op: str, function: Callable[..., Any], schema: str) -> Any:
        return define(op, name, function, schema, device_types)

    def gradients(grad_y: Tensor, *args: Any) -> tuple[Tensor, ...]:
        # A registered op returns tensors only: what there is not is empty.
        return tuple(grad_y.new_empty(0) if x is None else x for x in kernels.backward(grad_y, *args))

    forward = defined("ssd", kernels.forward, f"({_INPUTS}, Tensor? initial_state) -> (Tensor, Tensor)")
    backward = defined(
        "ssd_backward",
        gradients,
        f"(Tensor grad_y, Tensor? grad_state, {_INPUTS}, Tensor? initial_state) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    )
    saliency = defined("ssd_saliency", kernels.saliency, f"({_INPUTS}, Tensor grad_y, bool signed) -> Tensor")
    flow = defined(
        "ssd_flow", kernels.flow, f"({_INPUTS}, Tensor grad_y, {_GROUPS}, bool matrix) -> (Tensor, Tensor, Tensor)"
    )
    probed = defined(
        "ssd_probed",
        lambda y, *_: y.clone(),
        f"(Tensor y, {_INPUTS}, Tensor? saliency_probe, Tensor? flow_probe, Tensor? query_groups, Tensor? key_groups) "
        "-> Tensor",
    )
    _fakes(forward, backward, saliency, flow, probed)
    forward.register_autograd(_backward_through(backward), setup_context=_setup)
    probed.register_autograd(_probes_through(saliency, flow), setup_context=_setup_probes)

    def run_flow(*args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        sums, row_total, matrix_total = flow(*args)
        return sums, row_total, matrix_total if args[-1] else None

    def run(*args: Any) -> tuple[Tensor, Tensor]:
        *inputs, initial_state, saliency_probe, flow_probe, query_groups, key_groups = args
        y, state = forward(*inputs, initial_state)
        if saliency_probe is not None or flow_probe is not None:
            y = probed(y, *inputs, saliency_probe, flow_probe, query_groups, key_groups)
        return y, state

    return Registered(run, saliency, run_flow, probed)


def _of_any_size(kernels: SSDKernels) -> SSDKernels:
    """``kernels``, which run only where there are numbers: without, states, gradients and saliency are 0."""

    def exactly(x: Tensor, *shape: int) -> Tensor:
        return x.new_zeros(shape, dtype=accumulation_dtype(x))

    def forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        if x.numel():
            return kernels.forward(x, dt, A, B, *rest)
        return x.new_zeros(x.shape), exactly(x, x.shape[0], *x.shape[2:], B.shape[3])

    def backward(grad_y: Tensor, grad_state: Tensor | None, x: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
        if x.numel():
            return kernels.backward(grad_y, grad_state, x, *rest)
        *inputs, _key_range, initial_state = rest
        return *(z.new_zeros(z.shape) for z in (x, *inputs)), None if initial_state is None else initial_state.clone()

    def saliency(x: Tensor, *rest: Any) -> Tensor:
        return kernels.saliency(x, *rest) if x.numel() else exactly(x, x.shape[0], x.shape[1], x.shape[1])

    def flow(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        if x.numel():
            return kernels.flow(x, *rest)
        *_, num_query, num_key, _matrix = rest
        heads = (x.shape[0], x.shape[2])
        return exactly(x, *heads, num_query, num_key), exactly(x, *heads, num_query), exactly(x, *heads)

    return SSDKernels(forward, backward, saliency, flow)


def _fakes(forward: Any, backward: Any, saliency: Any, flow: Any, probed: Any) -> None:
    """Shapes and dtypes without values, for compiled graphs."""

    def like(x: Tensor) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @forward.register_fake  # type: ignore[untyped-decorator]
    def _(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        batch, _length, heads, size = x.shape
        return like(x), x.new_empty(batch, heads, size, B.shape[3], dtype=accumulation_dtype(x))

    @backward.register_fake  # type: ignore[untyped-decorator]
    def _(
        grad_y: Tensor, grad_state: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
        key_range: Tensor | None, initial_state: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        last = grad_y.new_empty(0) if initial_state is None else like(initial_state)
        return *(like(z) for z in (x, dt, A, B, C)), last

    @saliency.register_fake  # type: ignore[untyped-decorator]
    def _(x: Tensor, *_: Any) -> Tensor:
        return x.new_empty(x.shape[0], x.shape[1], x.shape[1], dtype=accumulation_dtype(x))

    @flow.register_fake  # type: ignore[untyped-decorator]
    def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        *_, num_query, num_key, _matrix = rest
        heads, dtype = (x.shape[0], x.shape[2]), accumulation_dtype(x)
        return (
            x.new_empty(*heads, num_query, num_key, dtype=dtype),
            x.new_empty(*heads, num_query, dtype=dtype),
            x.new_empty(heads, dtype=dtype),
        )

    @probed.register_fake  # type: ignore[untyped-decorator]
    def _(y: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(y)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)  # of the final state, which a training step does not use


def _backward_through(backward: Any) -> Callable[..., tuple[Tensor | None, ...]]:
    def run(ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, key_range, initial_state = ctx.saved_tensors
        if grad_y is None:
            grad_y = torch.zeros_like(inputs[0])
        *found, of_state = backward(grad_y, grad_state, *inputs, key_range, initial_state)
        need = ctx.needs_input_grad
        return (
            *(x if wanted else None for x, wanted in zip(found, need[:5], strict=True)),
            None,
            of_state if need[6] else None,
        )

    return run


def _setup_probes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *rest, saliency_probe, flow_probe, query_groups, key_groups = inputs
    ctx.save_for_backward(*rest, query_groups, key_groups)
    ctx.probes = [None if probe is None else (probe.dtype, probe.shape) for probe in (saliency_probe, flow_probe)]


def _probes_through(saliency: Any, flow: Any) -> Callable[..., tuple[Tensor | None, ...]]:
    def run(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, query_groups, key_groups = ctx.saved_tensors
        saliency_probe, flow_probe = ctx.probes
        of_saliency = of_flow = None
        if ctx.needs_input_grad[7]:
            of_saliency = saliency(*inputs, grad_y, True).to(saliency_probe[0])
        if ctx.needs_input_grad[8]:
            sums, _, _ = flow(*inputs, grad_y, query_groups, key_groups, *flow_probe[1][2:], False)
            of_flow = sums.to(flow_probe[0])
        return grad_y, None, None, None, None, None, None, of_saliency, of_flow, None, None

    return run
