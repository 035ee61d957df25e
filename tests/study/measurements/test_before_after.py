"""``python -m benchmarks before-after``: two checkouts in turns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_a_checkout_beside_itself() -> None:
    command = [sys.executable, "-m", "benchmarks", "before-after", "--before", str(ROOT), "--only", "gate"]
    done = subprocess.run([*command, "--rounds", "2"], cwd=ROOT, capture_output=True, text=True, check=True)
    head, *lines = done.stdout.splitlines()
    assert head.split()[-3:] == ["after", "/", "before"]
    assert [line.split("  ")[0] for line in lines] == ["gate_heads, T 256", "gate_heads, T 8"]
    assert all(float(line.split()[-1]) > 0 for line in lines)


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "before-after", "--before", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"--before: expected a checkout, which has symground/ops; got {tmp_path}" in done.stderr
