"""The simulator of a multiprocessor, on loops whose time follows from one rate, and on a kernel's own machine code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: kernel tests")

from benchmarks.forecast.instructions import Instruction
from benchmarks.forecast.multiprocessor import PROCESSORS, bounds, cycles, operations

A100, H100 = PROCESSORS["sm_80"], PROCESSORS["sm_90"]
ROOT = Path(__file__).resolve().parents[3]


def instruction(name: str, operands: str = "", stall: int = 1, writes: int = 7, waits: int = 0) -> Instruction:
    return Instruction(name, operands, stall, writes, 7, waits)


BRANCH = instruction("BRA")


def test_exponentials_take_eight_cycles_of_a_schedulers_pipe() -> None:
    """16 a cycle and multiprocessor: a warp's 32 take a quarter of the multiprocessor 8 cycles."""
    loop = [*[instruction("MUFU.EX2")] * 20, BRANCH]
    for programs in (1, 2):
        assert cycles(loop, 4, programs, H100) == pytest.approx(160 * programs, abs=3)
        assert bounds(loop, 4, H100)["mufu"] == 160


def test_multiply_adds_are_twice_as_fast_on_an_h100() -> None:
    loop = [*[instruction("FFMA")] * 100, BRANCH]
    assert cycles(loop, 8, 1, A100) == pytest.approx(400, abs=6)
    assert cycles(loop, 8, 1, H100) == pytest.approx(202, abs=6)  # two warps a scheduler, and their branches


def test_products_run_at_the_peak_of_the_tensor_cores() -> None:
    """312 and 989 TFLOP/s at the clocks of the data sheets; the simulator has the clock under load for H100."""
    mma = [*[instruction("HMMA.16816.F32.BF16")] * 64, BRANCH]
    speed = sum(map(operations, mma)) * 8 * A100.device.processors * A100.clock / cycles(mma, 8, 1, A100)
    assert speed == pytest.approx(312e12, rel=0.02)
    wait = instruction("WARPGROUP.DEPBAR.LE")
    wgmma = [*[instruction("HGMMA.64x256x16.F32.BF16", "R24, gdesc[UR8], R24")] * 8, wait, BRANCH]
    speed = sum(map(operations, wgmma)) * 8 * H100.device.processors * H100.clock / cycles(wgmma, 8, 1, H100)
    assert speed == pytest.approx(989e12 * H100.clock / 1.83e9, rel=0.02)


def test_a_warp_waits_for_a_scoreboard_and_others_fill_the_time() -> None:
    """One warp waits 30 cycles for each load; with four a scheduler the waits overlap."""
    loop = [instruction("LDS", writes=0), instruction("FADD", waits=1), BRANCH]
    alone, beside = cycles(loop, 4, 1, H100), cycles(loop, 16, 1, H100)
    assert 30 <= alone <= 40
    assert beside < 1.5 * alone


def test_all_warps_of_a_program_meet_at_a_barrier() -> None:
    """A program's turn lasts as long as its slowest warp's; two programs do not wait for each other."""
    loop = [*[instruction("MUFU.EX2")] * 4, instruction("BAR.SYNC"), *[instruction("FFMA")] * 30, BRANCH]
    one, two = cycles(loop, 4, 1, H100), cycles(loop, 4, 2, H100)
    assert one > 32 + 30
    assert two < 1.7 * one


@pytest.mark.slow
def test_a_kernels_loop_has_the_products_of_its_tile() -> None:
    """The forward pass multiplies tiles of 128 × 64 and 64 × 128 (queries, keys, head size 64) twice in a turn.

    So do saliency's rows, of 64 × 128, but a program has one turn, and no loop.
    """
    code = """
import torch
from benchmarks.forecast import forecast
from benchmarks.forecast.instructions import matrix_loops
from benchmarks.forecast.multiprocessor import operations
from symground.kernels.common.configs import Config
for kernel, arch, config in (
    ("attention_forward", "sm_80", Config(128, 64, 4, 2)), ("attention_forward", "sm_90", Config(128, 64, 4, 2)),
    ("attention_saliency_rows", "sm_90", Config(64, 128, 4, 1)),
):
    warps = config.num_warps
    compiled = forecast.table.compiled(kernel, arch, torch.bfloat16, 64, config, forecast.table.Problem())
    loop = forecast._main(matrix_loops(compiled.asm["cubin"]))
    print(sum(map(operations, loop)) * warps, sum(x.base == "MUFU" for x in loop))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *forward, rows = ([*map(int, line.split())] for line in done.stdout.splitlines())
    assert rows[0] == 4 * 128 * 64 * 64
    for found, exponentials in forward:
        assert found == 4 * 128 * 64 * 64
        assert exponentials == 128 * 64 // 128 + 4  # a thread's elements of the tile, and the fades of its four rows
