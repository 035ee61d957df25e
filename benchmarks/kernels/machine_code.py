"""The resources that compiled machine code uses: registers, stack, local memory in loops, tensor-core instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Resources(NamedTuple):
    """Those of one thread; stack in bytes."""

    registers: int
    stack: int
    local_in_loop: int
    matrix: Counter[str]


def printed(cubin: bytes, tool: str, *flags: str) -> str:
    """What one of CUDA's tools prints of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([TOOLS / tool, *flags, file.name], check=True, capture_output=True, text=True).stdout


def of_cubin(cubin: bytes) -> Resources:
    usage, sass = printed(cubin, "cuobjdump", "--dump-resource-usage"), printed(cubin, "nvdisasm", "-c")
    lines = sass.splitlines()
    looped = {i for start, end in _loops(lines) for i in range(start, end + 1)}
    return Resources(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),  # type: ignore[index]
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),  # type: ignore[index]
        local_in_loop=sum(bool(re.search(r"\b(LDL|STL)\b", lines[i])) for i in looped),
        matrix=Counter(re.findall(r"\b(HGMMA|HMMA|UTCHMMA|UTCQMMA|UTCMMA)\b", sass)),
    )


def _loops(lines: list[str]) -> Iterator[tuple[int, int]]:
    """(first, last) line of every loop: a branch back to a label, except the branch to itself at a kernel's end."""
    labels = {match[1]: i for i, line in enumerate(lines) if (match := re.match(r"^(\.L_x_\d+):", line.strip()))}
    for i, line in enumerate(lines):
        match = re.search(r"\bBRA(?:\.\w+)*\b.*?`\((\.L_x_\d+)\)", line)
        if match and labels.get(match[1], i) < i - 2:
            yield labels[match[1]], i


def of_amdgcn(text: str) -> Resources:
    return Resources(
        registers=int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1]),  # type: ignore[index]
        stack=int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)[1]),  # type: ignore[index]
        local_in_loop=0,
        matrix=Counter(re.findall(r"\b(v_mfma)", text)),
    )
