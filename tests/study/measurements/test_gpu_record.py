"""The GPU record on a CPU: every part writes its file, and a failing part does not stop the others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

import symground
from benchmarks.gpu.record import CERTAIN, SHARES, limit

ROOT = Path(symground.__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu" / "record.py"
PARTS = (*CERTAIN, *SHARES)


def record(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The script is run by its path from another folder; it is neither installed nor on Python's path.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out), *arguments], cwd=out, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip


def test_a_part_imports_no_more_than_its_needs() -> None:
    """The machine has torch, Triton, NumPy, pytest and transformers, and nothing can be installed on it."""
    others = {re.match(r"[\w-]+", line)[0] for line in requires("symground") or () if "extra" not in line}  # type: ignore[index]
    others -= {"torch", "numpy", "transformers", "tokenizers", "safetensors", "filelock", "rich"}  # transformers' own
    assert "tyro" in others
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({sorted(others)}))
from benchmarks.gpu.context import NEEDS
from benchmarks.gpu.record import MODULES, PARTS
for part in PARTS:
    importlib.import_module("benchmarks.gpu." + MODULES.get(part, "timings"))
lacking = []
for name in {{name for needs in NEEDS.values() for name in needs}}:
    try:
        importlib.import_module(name)
    except ImportError:
        lacking.append(name)
assert lacking == ["symground.training"], lacking
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def parts(out: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in out.glob("*.json")}


@pytest.mark.slow
def test_every_part_leaves_its_file_and_a_failing_one_stops_no_other(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: its interpreter runs the record's kernels")
    done = record(tmp_path, "--dry-run", "--break", "machine", "--budget", "1200")
    found = parts(tmp_path)
    assert set(found) == set(PARTS)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}
    assert [row["stage"] for row in found["study"]["rows"]] == ["training on arrays", "score", "trace", "intervene"]
    assert all(row["value"] > 0 for row in found["study"]["rows"][2:])
    assert done.returncode == 1, "one part failed"
    assert found["machine"]["status"] == "failed"
    assert "broken on purpose" in found["machine"]["error"]
    assert "broken on purpose" in found["machine"]["output_tail"]
    assert found["sanitizer"]["status"] == "needs CUDA"
    for name in set(PARTS) - {"machine", "sanitizer"}:
        assert found[name]["status"] == "ok", found[name]
    errors, repeats = found["correctness"]["rows"]
    assert errors["wrong"] == {}
    assert set(errors["errors"]) == set(repeats["compared"])
    assert repeats["different"] == {}
    assert any(name.startswith("SSD") for name in repeats["compared"])
    assert all(row["equal"] for row in found["graphs"]["rows"])
    assert all(row["relative_error"] < 1e-5 for row in found["tiles"]["rows"])
    assert found["tests"]["collected"] > 0
    stages = {row["stage"] for row in found["attention"]["rows"] if row["peer"] == "symground"}
    assert stages == {"forward", "backward", "layer", "saliency", "rows"}
    assert "runs" in found["attention"]["picked"]["float32"]
    assert "layer: FlexAttention" in found["attention"]["missing"]
    assert found["gate"]["implementation"] in ("extension", "plain PyTorch")
    assert {row["peer"] for row in found["gate"]["rows"]} >= {"symground", "copy of x"}
    assert all(row["relative_error"] < 1e-6 for row in found["gate"]["rows"] if row["peer"] == "symground")
    assert {row["stage"] for row in found["surprisal"]["rows"] if row["peer"] == "symground"} == {"surprisal", "loss"}
    assert found["surprisal"]["relative_errors"]["float32"]["symground"] < 1e-6
    of_mamba = [row for row in found["mamba"]["rows"] if row["peer"] == "symground"]
    assert {row["stage"] for row in of_mamba} == {"ssd", "ssd saliency", "mamba2 step"}
    assert all(row["relative_error"] < 1e-5 for row in of_mamba if row["stage"] != "mamba2 step")
    assert {row["peer"] for row in found["trace"]["rows"]} >= {"sg.trace", "symground, saliency only"}
    assert {row["peer"] for row in found["llava"]["rows"]} >= {"sg.trace, rows and flow"}
    assert not any("error" in row for part in found.values() for row in part["rows"])
    assert str(ROOT) not in json.dumps(found)


@pytest.mark.slow
def test_every_row_of_tiles_stands_beside_its_forecast(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: its interpreter runs the record's kernels")
    assert record(tmp_path, "--dry-run", "--parts", "tiles", "--budget", "600").returncode == 0
    rows = parts(tmp_path)["tiles"]["rows"]
    known = next(row for row in rows if row["kernel"] == "dkdv" and not row["shipped"])
    forecast = {"factors": {"interpreter": [0.5, 0.4, 0.6]}, "configurations": [{**known, "speed": 600.0}]}
    (tmp_path / "forecast.json").write_text(json.dumps(forecast), encoding="utf-8")
    del rows[-1]["speed"]
    (tmp_path / "tiles.json").write_text(json.dumps({"rows": [*rows[:-1], {**rows[-1], "error": "too large"}]}))
    code = "from pathlib import Path; from benchmarks.forecast.forecast import beside; beside(Path('.'), Path('.'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert [line[0] for line in lines] == [row["kernel"] for row in rows]
    m, n, warps, stages = known["config"]
    assert [line[4] for line in lines if line[5] == "300"] == [f"{m}×{n}, {warps}, {stages}"]
    assert lines[-1][6] == "too large"


def test_the_first_parts_have_their_time_however_long_each_of_them_takes() -> None:
    left, rest = 480.0, list(PARTS)
    while rest[0] in CERTAIN:
        given = limit(left, rest)
        assert given >= CERTAIN[rest.pop(0)]
        left -= given
    assert left >= 0


def test_time_that_a_part_does_not_use_goes_to_the_later_ones() -> None:
    parts = list(PARTS)
    assert limit(500.0, parts[parts.index("surprisal") :]) > limit(100.0, parts[parts.index("surprisal") :])
    assert limit(60.0, parts[-1:]) == 60


def test_a_candidate_that_cannot_be_launched_is_a_row_that_says_so() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: its interpreter runs the record's kernels")
    code = """
import json
from benchmarks.common.inputs import Inputs
from benchmarks.gpu import tiles

def seconds(run):
    run()
    if run.args[0].BM == 64:
        raise RuntimeError("out of resource: shared memory")
    return 2.0

x = Inputs(tiles.SMALL, "cpu", "triton")
print(json.dumps([list(tiles.rows("attention_saliency", x, seconds)), tiles.operations("attention_saliency", x.shape)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    rows, operations = json.loads(done.stdout)
    assert [row["shipped"] for row in rows] == [True, False, False, False]
    for row in rows:
        if row["config"][0] == 64:
            assert "out of resource" in row["error"]
            assert "speed" not in row
        else:
            assert row["speed"] == operations / 2.0 / 1e12
            assert row["relative_error"] < 1e-6
    # Two products of 40 × 40 × 16 for each of two heads, their causal halves, each float32 as three parts.
    assert operations == 3 * 2 * 2 * (2 * 40 * 40 * 16) / 2


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
