"""The resources that compiled machine code uses: registers, stack, local memory in loops, tensor-core instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import triton

from benchmarks.kernels.control_flow import names_in_loops

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
    return Resources(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),  # type: ignore[index]
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),  # type: ignore[index]
        local_in_loop=sum(name.startswith(("LDL", "STL")) for name in names_in_loops(sass)),
        matrix=Counter(re.findall(r"\b(HGMMA|HMMA|UTCHMMA|UTCQMMA|UTCMMA)\b", sass)),
    )


def of_amdgcn(text: str) -> Resources:
    return Resources(
        registers=int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1]),  # type: ignore[index]
        stack=int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)[1]),  # type: ignore[index]
        local_in_loop=0,
        matrix=Counter(re.findall(r"\b(v_mfma)", text)),
    )
