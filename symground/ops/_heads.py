"""Gated heads as a registered, differentiable op: by the extension where it is built, else by plain PyTorch.

Both give the same bits: products and sums rounded one by one, half precision computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from symground.ops import _checks as check
from symground.ops import _extension
from symground.ops._precision import accumulation_dtype


def plain(x: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
    """The specification: x [B,T,H,D], gate [H], [B,H] or [M,B,H] → [B,T,H,D], or [M,B,T,H,D]."""
    g = gate[..., None, :, None]  # [...,1,H,1]
    wide = accumulation_dtype(x)
    exact = g.to(wide)
    blended = exact * x.to(wide)
    if fill is not None:
        blended = blended + (1 - exact) * fill.to(wide)
    kept = torch.where(g == 1, x, blended.to(x.dtype))
    return torch.where(g == 0, x.new_zeros(()) if fill is None else fill, kept)


NOT_A_NUMBER = "gate: expected numbers, got NaN"


def check_numbers(gate: Tensor) -> None:
    check.values(~gate.isnan(), NOT_A_NUMBER, gate)


def run(x: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
    if not _extension.runs_on(x.device):
        check_numbers(gate)
        return plain(x, gate, fill).contiguous()
    out = x.new_empty((*gate.shape[:-2], *x.shape))
    read = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    if fill is not None and fill.ndim and fill.shape[-1] > 1 and fill.stride(-1) not in (0, 1):
        fill = fill.contiguous()  # at its own size: it is never expanded in memory
    # It looks for NaN itself: another operator for that takes longer than a small x does.
    if not _extension.library.gate_heads(read, gate.to(accumulation_dtype(x)), fill, out):
        raise ValueError(NOT_A_NUMBER)
    return out


# Not by custom_op, whose checks at each call take longer than a small x does.
_library = torch.library.Library("symground", "FRAGMENT")
_library.define("gate_heads(Tensor x, Tensor gate, Tensor? fill) -> Tensor")
_library.impl("gate_heads", run, "CompositeExplicitAutograd")
gate_heads = torch.ops.symground.gate_heads.default


@torch.library.register_fake("symground::gate_heads")  # type: ignore[untyped-decorator]
def _(x: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
    return x.new_empty((*gate.shape[:-2], *x.shape))


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """For `gradients`. Only the gate's reads x and fill: without it neither is kept alive."""
    x, gate, fill = inputs
    of_gate = ctx.needs_input_grad[1]
    ctx.save_for_backward(gate, *((x, fill) if of_gate else (None, None)))
    ctx.shapes = x.shape, None if fill is None else fill.shape


def gradients(gated: Callable[..., Tensor], ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Of x, gate and fill, where they are needed; ``gated`` is `gate_heads` or its plain form.

    The first and the last are gated heads themselves, so that nothing is read of a gradient whose factor is 0.
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
    """factor · grad, summed to ``shape``. Of many masks, each is a batch of its own: `gated` reads [B,T,H,D] only."""
    batches = factor.flatten(0, 1) if factor.ndim == 3 else factor
    return gated(grad.flatten(0, -4), batches, None).view(grad.shape).sum_to_size(shape)


def _of_gate(grad: Tensor, gate: Tensor, x: Tensor, fill: Tensor | None) -> Tensor:
    """Σ grad · (x - fill) over what each gate spans, as the formula has it: x is read where the gate is 0 too."""
    wide = accumulation_dtype(x)
    dropped = x.to(wide) if fill is None else x.to(wide) - fill.to(wide)
    return (grad.to(wide) * dropped).sum((-3, -1)).sum_to_size(gate.shape).to(gate.dtype)


torch.library.register_autograd(
    "symground::gate_heads", lambda ctx, grad: gradients(gate_heads, ctx, grad), setup_context=save
)
