"""Small programs in PTX, for the tests of the emulator."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.ptx import arithmetic, matrix, transfer, wgmma  # noqa: F401  # they enter their opcodes
from tests.ptx.machine import Kernel
from tests.ptx.memory import Array, GlobalMemory
from tests.ptx.program import parse


def run(
    body: str, *tensors: Tensor, threads: int = 32, shared: int = 0, grid: tuple[int, int, int] = (1, 1, 1),
    unset: tuple[Array | None, ...] = (),
) -> None:  # fmt: skip
    """Run a body with the addresses of the tensors in %rd100, %rd101, … and the thread in %r100.

    Args:
        unset: for each tensor, which bytes nothing has written; none if it is left out.
    """
    names = [f"test_param_{i}" for i in range(len(tensors))]
    parameters = ",\n".join(f".param .u64 .ptr .global .align 1 {name}" for name in names)
    loads = "\n".join(f"ld.param.b64 %rd{100 + i}, [{name}];" for i, name in enumerate(names))
    text = f".visible .entry test(\n{parameters}\n)\n{{\n{loads}\nmov.u32 %r100, %tid.x;\n{body}\nret;\n}}\n"
    values = {name: ("u64", x.data_ptr()) for name, x in zip(names, tensors, strict=True)}
    maps = {x.data_ptr(): y for x, y in zip(tensors, unset, strict=False)}
    memory = GlobalMemory(tensors, lambda x: maps.get(x.data_ptr()))
    Kernel(parse(text)).launch(grid, threads, shared, values, memory)


def each(row: int, tensor: int, register: str) -> str:
    """``register``: the address of this thread's row of a tensor, whose rows have ``row`` bytes."""
    return f"mad.wide.u32 {register}, %r100, {row}, %rd{100 + tensor};"


def bits(values: list[int], width: int) -> Tensor:
    """Numbers as a tensor of ``width`` bits each."""
    of = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[width]
    return torch.tensor([_signed(x, width) for x in values], dtype=of)


def _signed(x: int, width: int) -> int:
    x &= (1 << width) - 1
    return x - (1 << width) if width > 8 and x >> (width - 1) else x
