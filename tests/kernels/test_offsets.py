"""Offsets in 32 bits are found in what Triton compiles, each planted in a kernel of its own.

It happens in a separate process, because in this one Triton runs in its interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: kernel tests")

#: An offset → how many of its products may overflow.
OFFSETS = {
    "o * s_x": 1,
    "o.to(tl.int64) * s_x": 0,
    "i * s_x + o": 1,
    "i.to(tl.int64) * s_x + o": 0,
    "i.to(tl.int64) * s_x * n + o": 0,
    "i * n * s_x + o": 2,
    "(i * n).to(tl.int64) * s_x + o": 1,
    "3 * s_x + o": 1,
    "(s_x + n) * 16 + o": 1,
    "i // n * 64 + o": 0,
}
KERNEL = """
@triton.jit
def planted_{i}(p_x, p_y, s_x, n):
    i = tl.program_id(0)
    o = i * 64 + tl.arange(0, 64)
    for _ in range(n):
        tl.store(p_y + o, tl.load(p_x + {offset}))
"""
PROGRAM = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.kernels.offsets import narrow_products
{kernels}
for kernel in ({names}):
    source = ASTSource(kernel, {{"p_x": "*fp16", "p_y": "*fp16", "s_x": "i32", "n": "i32"}})
    print(len(narrow_products(triton.compile(source, GPUTarget("cuda", 80, 32)).asm["ttir"])))
"""


def test_each_product_that_may_overflow_is_found(tmp_path: Path) -> None:
    kernels = [KERNEL.format(i=i, offset=offset) for i, offset in enumerate(OFFSETS)]
    names = ", ".join(f"planted_{i}" for i in range(len(OFFSETS)))
    script = tmp_path / "planted.py"  # Triton reads a kernel's source from its file
    script.write_text(PROGRAM.format(kernels="\n".join(kernels), names=names), encoding="utf-8")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert dict(zip(OFFSETS, map(int, result.stdout.split()), strict=True)) == OFFSETS
