"""The public op that gates heads: scaling, silencing or replacing the output of each attention head."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common.dispatch import choose
from symground.ops.common.extension import runs_on
from symground.ops.common.tensors import accumulation_dtype
from symground.ops.gate import extension, reference

#: The implementations by their name for ``impl``, in the order in which ``impl=None`` tries them.
IMPLEMENTATIONS = {"cpu": extension.cpu, "cuda": extension.cuda, "reference": reference}


def gate_heads(x: Tensor, gate: Tensor, fill: Tensor | None = None, *, impl: str | None = None) -> Tensor:
    """gate·x + (1 - gate)·fill, head by head; differentiable in x, gate and fill.

    Args:
        x: [B,T,H,D] outputs of the heads, before the output projection, with any strides.
        gate: [H] or [B,H], or M masks at once, [M,B,H], for which x is not copied. Gate 0 gives ``fill`` exactly (x is
            not read, so it may be NaN); gate 1 gives x exactly.
        fill: the output of a head with gate 0, broadcast to the result; None is 0.
        impl: "cpu", "cuda" or "reference"; None picks by device. "cpu" uses the C++ extension if it is built, else
            plain PyTorch with the same results (:func:`implementation` says which). "cuda" uses the extension's CUDA
            kernel.

    Returns:
        [B,T,H,D] in the dtype of x; [M,B,T,H,D] for M masks. Half precision is computed in float32 and rounded once.

    Raises:
        ValueError: an argument has a wrong shape, dtype or device, or ``gate`` has NaN; the message names it.
        RuntimeError: ``impl="cuda"`` but the extension has no CUDA part; or ``gate`` has NaN on a GPU, which is
            detected later.
        NotImplementedError: a forward-mode derivative was requested; only ``impl="reference"`` has it.

    Source: head ablation before the output projection, Michel et al. 2019 ("Are sixteen heads really better than
    one?"), section 2.2.

    Example:
        >>> x, gate, fill = torch.randn(1, 5, 2, 8), torch.tensor([0.0, 0.5]), torch.randn(8)
        >>> by_hand = gate[:, None] * x + (1 - gate[:, None]) * fill
        >>> torch.allclose(ops.gate_heads(x, gate, fill), by_hand, atol=1e-6)
        True
    """
    check.has_shape("x", x, "B,T,H,D", (None,) * 4)
    check.is_floating("x", x)
    check.gate(check.is_tensor("gate", gate), x.shape[0], x.shape[2], x, many=True)  # the op checks its values
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
    """What computes :func:`gate_heads` on a device: "extension", or "plain PyTorch" if the extension is not built."""
    return "extension" if runs_on(torch.device(device)) else "plain PyTorch"
