"""The machine code of a compiled kernel: instructions with their control bits, and the loops that hold its products.

The control bits of Volta and later: how long the warp waits before its next instruction, which of six scoreboards the
instruction sets when its result, or its reading of operands, is done, and which it waits for. Source: Jia et al. 2018
("Dissecting the NVIDIA Volta GPU architecture via microbenchmarking"), chapter 2.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from benchmarks.kernels.machine_code import printed


class Instruction(NamedTuple):
    """One instruction of a warp."""

    #: Such as HGMMA.64x128x16.F32.BF16, without its guard.
    name: str
    operands: str
    #: Cycles until the warp's next instruction.
    stall: int
    #: The scoreboard that is set when the result is there, and when the operands are read; 7 is none.
    writes: int
    reads: int
    #: Bits of the scoreboards that it waits for.
    waits: int

    @property
    def base(self) -> str:
        return self.name.partition(".")[0]


Loop = list[Instruction]
_LABEL = re.compile(r"(\.L_x_\d+):")
_LINE = re.compile(r"/\*[0-9a-f]{4,6}\*/\s+(?:@!?U?P\w+\s+)?(\S+)\s*(.*?)\s*;\s*/\*\s*0x[0-9a-f]+\s*\*/")
_UPPER = re.compile(r"/\*\s*0x([0-9a-f]+)\s*\*/")


def matrix_loops(cubin: bytes) -> list[Loop]:
    """The innermost loops with matrix instructions, from their first instruction to the branch back.

    The whole kernel, if it has such instructions and they are in no loop.
    """
    code, labels = _read(cubin)
    loops = [
        (labels[target[1]], i)
        for i, x in enumerate(code)
        if x.base == "BRA" and (target := re.search(r"`\((\.L_x_\d+)\)", x.operands)) and labels[target[1]] < i - 2
    ]
    found = [(first, last) for first, last in loops if any(is_matrix(x) for x in code[first:last])]
    if not found:
        return [code] if any(map(is_matrix, code)) else []
    inner = [a for a in found if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in found)]
    return [code[first : last + 1] for first, last in inner]


def is_matrix(x: Instruction) -> bool:
    return x.base in ("HGMMA", "HMMA")


def _read(cubin: bytes) -> tuple[list[Instruction], dict[str, int]]:
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    whole = None
    for line in map(str.strip, printed(cubin, "nvdisasm", "-c", "-hex").splitlines()):
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif found := _LINE.match(line):
            whole = found
        elif whole is not None and (upper := _UPPER.match(line)):
            control = int(upper[1], 16) >> 41
            bits = [control & 0xF, control >> 5 & 7, control >> 8 & 7, control >> 11 & 0x3F]
            code.append(Instruction(whole[1], whole[2], *bits))
            whole = None
    return code, labels
