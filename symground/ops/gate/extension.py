"""The ``cpu`` and ``cuda`` implementations of gated heads: one op of torch.library, computed by the C++ extension.

Without the extension, plain PyTorch computes it on a CPU. Both give the same bits: each product and sum is rounded, and
half precision is computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from symground.ops.common import extension, needs
from symground.ops.common.register import define
from symground.ops.common.tensors import accumulation_dtype
from symground.ops.gate.reference import check_numbers, checks, gradients, plain, save


def run(x: Tensor, gate: Tensor, fill: Tensor | None) -> Tensor:
    if not extension.runs_on(x.device):
        check_numbers(gate)
        return plain(x, gate, fill).contiguous()
    out = x.new_empty((*gate.shape[:-2], *x.shape))
    read = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    if fill is not None and fill.ndim and fill.shape[-1] > 1 and fill.stride(-1) not in (0, 1):
        fill = fill.contiguous()  # fill at its own size; it is never broadcast in memory
    # The extension checks for NaN itself: a separate operator would take longer than a small x.
    if not extension.library.gate_heads(read, gate.to(accumulation_dtype(x)), fill, out):
        check_numbers(gate)
    return out


gate_heads: Any = define(
    "gate_heads",
    "(Tensor x, Tensor gate, Tensor? fill) -> Tensor",
    run,
    lambda x, gate, fill: x.new_empty((*gate.shape[:-2], *x.shape)),
    lambda ctx, grad: gradients(gate_heads, ctx, grad),
    save,
)


class Ops(NamedTuple):
    """An implementation of the public op, which expects checked arguments."""

    gate_heads: Callable[..., Any]
    refuses: Callable[[Tensor], Exception | None]
    checks: Callable[..., None] = checks


cpu = Ops(gate_heads, needs.cpu)
cuda = Ops(gate_heads, needs.cuda_extension)
