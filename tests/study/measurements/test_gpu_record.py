"""The GPU record on a CPU: every part writes its file, and a failing part does not stop the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import symground

ROOT = Path(symground.__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu" / "record.py"
PARTS = {
    "machine",
    "gate",
    "tests",
    "sanitizer",
    "determinism",
    "attention",
    "flow",
    "surprisal",
    "mamba",
    "training",
    "trace",
    "study",
    "llava",
}


def record(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The script is run by its path from another folder; it is neither installed nor on Python's path.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out), *arguments], cwd=out, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip


def parts(out: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in out.glob("*.json")}


@pytest.mark.slow
def test_every_part_leaves_its_file_and_a_failing_one_stops_no_other(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: its interpreter runs the record's kernels")
    done = record(tmp_path, "--dry-run", "--break", "machine", "--budget", "1200")
    found = parts(tmp_path)
    assert set(found) == PARTS
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}
    assert [row["stage"] for row in found["study"]["rows"]] == ["training on arrays", "score", "trace", "intervene"]
    assert all(row["value"] > 0 for row in found["study"]["rows"][2:])
    assert done.returncode == 1, "one part failed"
    assert found["machine"]["status"] == "failed"
    assert "broken on purpose" in found["machine"]["error"]
    assert "broken on purpose" in found["machine"]["output_tail"]
    assert found["sanitizer"]["status"] == "needs CUDA"
    for name in PARTS - {"machine", "sanitizer"}:
        assert found[name]["status"] == "ok", found[name]
    assert all(row["different"] == {} for row in found["determinism"]["rows"])
    assert found["tests"]["collected"] > 0
    stages = {row["stage"] for row in found["attention"]["rows"] if row["peer"] == "symground"}
    assert stages == {"forward", "backward", "layer", "saliency", "rows"}
    assert "layer: FlexAttention" in found["attention"]["missing"]
    assert found["gate"]["implementation"] in ("extension", "plain PyTorch")
    assert {row["peer"] for row in found["gate"]["rows"]} >= {"symground", "copy of x"}
    assert all(row["relative_error"] < 1e-6 for row in found["gate"]["rows"] if row["peer"] == "symground")
    assert {row["stage"] for row in found["surprisal"]["rows"] if row["peer"] == "symground"} == {"surprisal", "loss"}
    assert found["surprisal"]["relative_errors"]["float32"]["symground"] < 1e-6
    of_mamba = [row for row in found["mamba"]["rows"] if row["peer"] == "symground"]
    assert {row["stage"] for row in of_mamba} == {"ssd", "ssd saliency", "mamba2 step"}
    assert all(row["relative_error"] < 1e-5 for row in of_mamba if row["stage"] != "mamba2 step")
    assert any(name.startswith("SSD") for name in found["determinism"]["rows"][0]["compared"])
    assert {row["peer"] for row in found["trace"]["rows"]} >= {"sg.trace", "symground, saliency only"}
    assert {row["peer"] for row in found["llava"]["rows"]} >= {"sg.trace, rows and flow"}
    assert not any("error" in row for part in found.values() for row in part["rows"])
    assert str(ROOT) not in json.dumps(found)


def test_a_part_whose_time_is_up_leaves_its_file(tmp_path: Path) -> None:
    done = record(tmp_path, "--dry-run", "--parts", "machine", "--budget", "0.3")
    assert done.returncode == 1
    assert parts(tmp_path)["machine"]["status"] == "timed out"


def test_without_cuda_it_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device: what is said without one")
    done = record(tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("gpu_record: no CUDA device here")
    assert parts(tmp_path) == {}
