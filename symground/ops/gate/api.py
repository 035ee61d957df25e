"""The public op that gates heads: scaling, silencing or replacing the output of each attention head."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common import extension
from symground.ops.common.dispatch import choose
from symground.ops.common.tensors import accumulation_dtype
from symground.ops.gate import cpu, cuda, reference

#: By the name for ``impl``, in the order in which ``impl=None`` tries them.
IMPLEMENTATIONS = {"cpu": cpu, "cuda": cuda, "reference": reference}


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
    gated: Tensor = choose("gate_heads", IMPLEMENTATIONS, impl, x)(x, gate.to(accumulation_dtype(x)), fill)
    return gated


def implementation(device: str | torch.device = "cpu") -> str:
    """What computes :func:`gate_heads` for tensors on a device: "extension", or "plain PyTorch" where none is built."""
    return "extension" if extension.runs_on(torch.device(device)) else "plain PyTorch"
