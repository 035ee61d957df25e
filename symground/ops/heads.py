"""Gating heads: scaling, silencing or replacing the output of each attention head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from symground.ops import _checks as check
from symground.ops import _extension, _heads
from symground.ops._dispatch import choose
from symground.ops._functions import differentiable
from symground.ops._precision import accumulation_dtype


def gate_heads(x: Tensor, gate: Tensor, fill: Tensor | None = None, *, impl: str | None = None) -> Tensor:
    """gate·x + (1 - gate)·fill, head by head; differentiable in x, gate and fill.

    Args:
        x: [B,T,H,D] outputs of the heads, before the output projection, of any strides.
        gate: [H] or [B,H], or M masks at once, [M,B,H]: x is not copied for them. Gate 0 gives ``fill`` exactly (x is
            not read, so NaN in x does not leak); gate 1 gives x exactly.
        fill: what a closed head gives, broadcasting to the result; None is 0.
        impl: None picks by device; "cpu", "cuda" or "reference". "cpu" runs in the C++ extension where it is built,
            else in plain PyTorch, with the same results (:func:`implementation` says which); "cuda" is the extension's.

    Returns:
        [B,T,H,D] in the dtype of x; for M masks [M,B,T,H,D]. Half precision is computed in float32 and rounded once.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or NaN in ``gate``, by the name of the argument.
        RuntimeError: ``impl="cuda"`` where the extension has no CUDA part; NaN in ``gate`` on a GPU, where it is
            noticed later.
        NotImplementedError: a derivative in forward mode, but by ``impl="reference"``.

    Source: head ablation before the output projection, Michel et al. 2019 ("Are sixteen heads really better than
    one?"), section 2.2.
    """
    check.has_shape("x", x, "B,T,H,D", (None,) * 4)
    check.is_floating("x", x)
    check.gate(check.is_tensor("gate", gate), x.shape[0], x.shape[2], x, many=True)  # its values in the op
    shape = torch.Size((*gate.shape[:-2], *x.shape))
    if fill is not None:
        check.is_floating("fill", fill)
        check.matches("fill", fill, "x", x)
        try:
            broadcasts = torch.broadcast_shapes(fill.shape, shape) == shape
        except RuntimeError:
            broadcasts = False
        if not broadcasts:
            raise ValueError(f"fill: expected a shape that broadcasts to {list(shape)}, got {list(fill.shape)}")
    return choose("gate_heads", IMPLEMENTATIONS, impl, x)(x, gate.to(accumulation_dtype(x)), fill)


class _GateHeads(torch.autograd.Function):
    """Forward picks x or fill where the gate is exactly 1 or 0; the gradient is that of the formula everywhere."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
        return _heads.plain(x, gate, fill)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _heads.save(ctx, inputs, output)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _heads.gradients(_gate_heads, ctx, *grads)

    @staticmethod
    def tangent(ctx: Any, of_x: Tensor | None, of_gate: Tensor | None, of_fill: Tensor | None) -> Tensor:
        x, gate, fill = ctx.saved_tensors
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


def gate_heads_reference(x: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
    """The specification."""
    _heads.check_numbers(gate)
    out: Tensor = _gate_heads(x, gate, fill)
    return out


def implementation(device: str | torch.device = "cpu") -> str:
    """What computes :func:`gate_heads` for tensors on a device: "extension", or "plain PyTorch" where none is built."""
    return "extension" if _extension.runs_on(torch.device(device)) else "plain PyTorch"


IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": gate_heads_reference,
    "cpu": _heads.gate_heads,
    "cuda": _heads.gate_heads,
}
