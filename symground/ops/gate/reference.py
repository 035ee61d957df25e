"""The specification of gated heads, in plain PyTorch, with its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common import needs
from symground.ops.common.derivatives import differentiable
from symground.ops.common.differentiated import any_taken
from symground.ops.common.tensors import accumulation_dtype

refuses = needs.nothing


def checks(x: Tensor, gate: Tensor, fill: Tensor | None) -> None:
    check_numbers(gate)


def gate_heads(x: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
    check_numbers(gate)
    out: Tensor = _gate_heads(x, gate, fill)
    return out


def plain(x: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
    """x [B,T,H,D], gate [H], [B,H] or [M,B,H] → [B,T,H,D], or [M,B,T,H,D]."""
    g = gate[..., None, :, None]  # [...,1,H,1]
    wide = accumulation_dtype(x)
    exact = g.to(wide)
    blended = exact * x.to(wide)
    if fill is not None:
        blended = blended + (1 - exact) * fill.to(wide)
    kept = torch.where(g == 1, x, blended.to(x.dtype))
    return torch.where(g == 0, x.new_zeros(()) if fill is None else fill, kept)


def check_numbers(gate: Tensor) -> None:
    check.values(~gate.isnan(), "gate: expected numbers", gate)


class _GateHeads(torch.autograd.Function):
    """The forward pass picks x or fill where the gate is exactly 1 or 0; the gradient is the formula's everywhere."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
        return plain(x, gate, fill)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, inputs, output)
        if any_taken():
            x, gate, fill = inputs
            # The same tensors for both, in one order: torch's rule for vmap keeps one list of the dimensions it maps.
            ctx.save_for_backward(gate, x, fill)
            ctx.save_for_forward(gate, x, fill)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return gradients(_gate_heads, ctx, *grads)

    @staticmethod
    def tangent(ctx: Any, of_x: Tensor | None, of_gate: Tensor | None, of_fill: Tensor | None) -> Tensor:
        gate, x, fill = ctx.saved_tensors
        change = x.new_zeros(())
        if of_x is not None:
            change = change + _gate_heads(of_x, gate, None)
        if of_fill is not None:
            change = change + _gate_heads(torch.zeros_like(x), gate, of_fill)
        if of_gate is not None:
            change = change + of_gate[..., None, :, None] * (x if fill is None else x - fill)
        tangent: Tensor = change.to(x.dtype)
        return tangent


_gate_heads = differentiable(_GateHeads)


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save what `gradients` needs. Only the gate's gradient reads x and fill, so otherwise neither is kept alive."""
    x, gate, fill = inputs
    of_gate = ctx.needs_input_grad[1]
    ctx.save_for_backward(gate, *((x, fill) if of_gate else (None, None)))
    ctx.shapes = x.shape, None if fill is None else fill.shape


def gradients(gated: Callable[..., Tensor], ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of x, gate and fill, if needed. ``gated`` is `gate_heads` or its plain form.

    Those of x and fill are computed by ``gated`` itself, which does not read a gradient whose factor is 0.
    """
    gate, x, fill = ctx.saved_tensors
    of_x, of_gate, of_fill = ctx.needs_input_grad
    x_shape, fill_shape = ctx.shapes
    return (
        _scaled(gated, grad, gate, x_shape) if of_x else None,
        _of_gate(grad, gate, x, fill) if of_gate else None,
        _scaled(gated, grad, 1 - gate, fill_shape) if of_fill else None,
    )


def _scaled(gated: Callable[..., Tensor], grad: Tensor, factor: Tensor, shape: Sequence[int]) -> Tensor:
    """factor · grad, summed to ``shape``. Several masks become batches, since ``gated`` reads only [B,T,H,D]."""
    if grad.ndim == 4:
        return gated(grad, factor, None).sum_to_size(shape)
    batches = factor.flatten(0, 1) if factor.ndim == 3 else factor
    return gated(grad.flatten(0, -4), batches, None).view(grad.shape).sum_to_size(shape)


def _of_gate(grad: Tensor, gate: Tensor, x: Tensor, fill: Tensor | None) -> Tensor:
    """Σ grad · (x - fill) over the elements of each gate. As in the formula, x is read even where the gate is 0."""
    wide = accumulation_dtype(x)
    dropped = x.to(wide) if fill is None else x.to(wide) - fill.to(wide)
    return (grad.to(wide) * dropped).sum((-3, -1)).sum_to_size(gate.shape).to(gate.dtype)
