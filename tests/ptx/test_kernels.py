"""A few of the tests of the Triton kernels on compiled kernels; `python -m tests.ptx` runs all of them.

They run in a process of their own, because in this one Triton is in its interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: kernel tests")

from tests.ptx.__main__ import ROOT, environment

EQUAL = "test_every_result_is_as_good_as_eagers"
CHOSEN = {
    "sm_80": [
        "tests/ptx/planted.py",
        f"tests/ops/attention/test_triton.py::{EQUAL}[(1, 2, 2, 150, 290, 64)-window-torch.bfloat16]",
        "tests/ops/ssd/test_triton.py::test_equals_the_reference[shape6-torch.bfloat16]",
    ],
    "sm_90": [
        "tests/ptx/planted.py",
        f"tests/ops/attention/test_triton.py::{EQUAL}[(1, 2, 1, 200, 200, 64)-gate-torch.bfloat16]",
        "tests/ops/vocabulary/test_triton.py::test_as_good_as_eager[(150, 96, 300, 40)-True-True-torch.bfloat16]",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CHOSEN)
def test_compiled_kernels_are_as_good_as_eager(architecture: str, tmp_path: Path) -> None:
    counts = tmp_path / "counts.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.ptx.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *CHOSEN[architecture]], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, **environment(architecture, counts)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    found = json.loads(counts.read_text())
    assert {"attention_forward_kernel", "dq_kernel", "dkdv_kernel", "attention_saliency_kernel"} <= {*found["kernels"]}
    matrix = "wgmma.mma_async" if architecture == "sm_90" else "mma.sync"
    assert any(name.startswith(matrix) for name in found["instructions"])


@pytest.mark.parametrize("given", ["", "90", "sm_89", "sm_100", "SM_90"])
def test_an_architecture_that_it_does_not_have_is_named(given: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.ptx.plugin", "tests/ptx/planted.py"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment(given, Path(os.devnull))}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert done.stderr.strip().endswith(f"SYMGROUND_EMULATE: expected one of 'sm_80', 'sm_86', 'sm_90'; got {given!r}")
    assert "Traceback" not in done.stdout + done.stderr
