"""Gated heads as a registered, differentiable op: by the extension where it is built, else by plain PyTorch.

Both give the same bits: products and sums rounded one by one, half precision computed in float32 and rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


def run(x: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
    if not _extension.runs_on(x.device):
        return plain(x, gate, fill).contiguous()
    shape = (*gate.shape[:-2], *x.shape)
    out = x.new_empty((1, *shape)[-5:])
    masks = gate.expand(out.shape[0], out.shape[1], out.shape[3]).contiguous()
    read = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    if fill is not None:
        if fill.ndim == 0 or fill.stride(-1) != 1 or fill.shape[-1] != x.shape[-1]:  # the last dimension only
            fill = fill.expand(*fill.shape[:-1], x.shape[-1]).contiguous()
        fill = fill.expand(out.shape)
    _extension.library.gate_heads(read, masks, fill, out)
    return out.view(shape)


gate_heads = torch.library.custom_op(
    "symground::gate_heads", run, mutates_args=(), schema="(Tensor x, Tensor gate, Tensor? fill) -> Tensor"
)


@gate_heads.register_fake
def _(x: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
    return x.new_empty((*gate.shape[:-2], *x.shape))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, gate, fill = ctx.saved_tensors
    need_x, need_gate, need_fill = ctx.needs_input_grad
    of_x = of_gate = of_fill = None
    if need_x:
        # Of many masks, each a batch of its own: the op reads x [B,T,H,D] only.
        batches = gate.flatten(0, 1) if gate.ndim == 3 else gate
        of_x = gate_heads(grad.flatten(0, -4), batches, None).view(grad.shape).sum_to_size(x.shape)
    if need_gate:
        dropped = x if fill is None else x - fill
        of_gate = (grad * dropped).sum((-3, -1)).sum_to_size(gate.shape)
    if need_fill:
        of_fill = ((1 - gate[..., None, :, None]) * grad).sum_to_size(fill.shape)
    return of_x, of_gate, of_fill


gate_heads.register_autograd(_backward, setup_context=_setup)
