"""The kernels as a GPU would run them: compiled ahead of time, which needs no GPU.

It happens in a separate process, because in this one Triton runs in its interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: kernel tests")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels" / "table.py"


def compiled(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    return subprocess.run(
        [sys.executable, SCRIPT, "--no-save", *arguments], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_shipped_configurations_fit_and_touch_no_local_memory_in_a_loop(arch: str) -> None:
    result = compiled("--arch", arch, "--head-size", "64", "--dtype", "bfloat16")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("HGMMA" if arch == "sm_90" else "MMA") >= 14  # delta and own_candidates have no product


@pytest.mark.slow
def test_products_in_chunks_touch_no_local_memory_in_a_loop() -> None:
    """The backward pass of the widest float32 heads needs more registers than any other kernel."""
    kernels = ("dq", "dq_flow", "dkdv")
    result = compiled("--arch", "sm_80", "--head-size", "200", "256", "--dtype", "float32", "--kernel", *kernels)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("HMMA") == 2 * len(kernels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("window", "key_range", "gate"), ("softcap", "sink"), ("slopes",), ("segments",), ("blocks",)],
    ids="-".join,
)
def test_every_option_compiles(options: tuple[str, ...]) -> None:
    """With lengths of 1, which the compiler specialises."""
    kernels = ("attention_forward", "dq_flow", "dkdv", "attention_saliency", "attention_flow")
    result = compiled(
        "--arch", "sm_90", "--head-size", "80", "--dtype", "float16", "--length", "1", "--option", *options,
        "--kernel", *kernels,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_a_configuration_that_spills_is_reported() -> None:
    result = compiled(
        "--arch", "sm_90", "--head-size", "64", "--dtype", "bfloat16", "--kernel", "dkdv",
        "--config", "64", "128", "4", "2",
    )  # fmt: skip
    assert result.returncode == 1
    assert "local memory in a loop" in result.stderr


def test_a_configuration_beyond_tensor_memory_is_reported() -> None:
    result = compiled(
        "--arch", "sm_100", "--head-size", "256", "--dtype", "float32", "--kernel", "attention_saliency",
        "--config", "128", "64", "4", "1",
    )  # fmt: skip
    assert result.returncode == 1
    assert "tensor memory" in result.stderr


def test_architectures_that_share_a_process_share_nothing() -> None:
    """AMD's multiply float32 directly, CUDA's as three products of TF32."""
    code = (
        "from benchmarks.kernels import table\n"
        "for arch in ('sm_90', 'gfx942', 'sm_90'):\n"
        "    row = table.examine(('attention_saliency', arch, 'float32', 32, None, table.Problem()))\n"
        "    print(arch, *row.matrix, row.error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPT.parents[2], check=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines == [["sm_90", "HGMMA"], ["gfx942", "v_mfma"], ["sm_90", "HGMMA"]]
