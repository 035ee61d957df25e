"""The logic of the benchmark suite: what it prints, keeps, skips and compares. Nothing is measured."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.__main__ import main as run_benchmarks
from benchmarks.common import measure
from benchmarks.peers.attention import CLOSED, EAGER, SDPA, SYMGROUND
from benchmarks.summary import run as bench
from benchmarks.summary import tables, verdict
from benchmarks.summary.goals import GOALS, needs_cuda
from benchmarks.summary.picture import picture

LAYER = {"B": 4, "H": 12, "T": 1024, "D": 64, "dtype": "float32"}
SUITE = """
import pytest
@pytest.mark.parametrize("peer", ["symground", "SDPA"])
def test_layer(benchmark, in_turns, peer):
    in_turns("layer", peer, lambda: dict.fromkeys(["symground", "SDPA"], lambda: sum(range(10_000))), 3, "cpu")
    benchmark.extra_info.update({{"stage": "layer", "peer": peer, **{layer}}})
def test_more(benchmark):
    {what}
"""
GOOD = "benchmark.pedantic(lambda: None); benchmark.extra_info.update({'stage': 'x', 'peer': 'y'})"


def row(stage: str, peer: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {"stage": stage, "peer": peer, "seconds": seconds, "iqr": seconds / 100, "rounds": 7, **LAYER, **more}


ROWS = [
    row("layer", SYMGROUND, 0.2, peak_bytes=80, suite="attention"), row("layer", SDPA, 0.1, suite="attention"),
    row("layer", EAGER, 1.0, peak_bytes=800, suite="attention"), row("saliency", SYMGROUND, 0.05, suite="attention"),
    row("saliency", CLOSED, 0.1, suite="attention"),
]  # fmt: skip
MACHINE = {"cpu": {"brand": "a", "cores": 2, "arch": "x"}, "threads": 2, "torch": "2.13", "python": "3.11",
           "extension": True, "gpu": None}  # fmt: skip


def result(rows: list[dict[str, Any]] = ROWS) -> dict[str, Any]:
    missing = {"forward: flash-attn, float32": "flash_attn does not import", "loss: Liger": "does not import: no liger"}
    return {
        "format": verdict.FORMAT, "machine": MACHINE, "versions": {"symground": "0", "revision": "abc"}, "rates": {},
        "missing": missing, "goals": [verdict.judged(goal, rows, missing) for goal in GOALS], "rows": rows,
    }  # fmt: skip


def of(found: dict[str, Any], text: str) -> dict[str, Any]:
    (goal,) = [goal for goal in found["goals"] if goal["goal"] == text]
    return goal


def test_every_number_is_printed_with_its_ratio_or_the_reason_why_it_is_open() -> None:
    found = result()
    assert [goal["goal"] for goal in found["goals"]] == [goal.text for goal in GOALS]
    met = of(found, "layer with saliency: faster than eager")
    assert (met["status"], met["ratio"], met["of"]["seconds"], met["of"]["iqr"]) == ("met", 5.0, 0.2, 0.002)
    below = of(found, "layer with saliency: time of SDPA forward + backward")
    assert (below["status"], below["ratio"], below["reason"]) == ("open", 2.0, "below the goal")
    assert of(found, "layer with saliency: extra memory of eager's")["ratio"] == 0.1
    assert of(found, "training loss: speed of Liger's")["reason"] == "Liger: does not import: no liger"
    assert of(found, "saliency alone: faster than torch.compile of it")["reason"] == "not measured in this run"
    for goal in found["goals"]:
        assert goal["status"] == "met" or goal["reason"]
    cells = tables.cells_of(found)
    assert cells[0][4:6] == ["5 ×", "≥ 2.5 ×"]
    assert cells[0][1] == "200 ms ± 1%"
    text = tables.markdown(found)
    assert (
        "| layer with saliency: time of SDPA forward + backward | 200 ms ± 1% | SDPA | 100 ms ± 1% | 2 | ≤ 1.2 |"
        in text
    )
    assert "- forward: flash-attn, float32: flash_attn does not import" in text
    assert picture(found["goals"], "x").startswith("<svg")


def test_suites_of_several_revisions_each_name_theirs() -> None:
    assert tables.machine_line(result()).endswith("symground 0 at abc")
    same = {**result(), "revisions": {"gate": "abc", "trace": "abc"}}
    assert tables.machine_line(same).endswith("symground 0 at abc")
    mixed = {**result(), "revisions": {"gate": "abc", "mamba": "def", "trace": "abc"}}
    assert tables.machine_line(mixed).endswith("symground 0 at abc (gate, trace); def (mamba)")


def test_without_a_gpu_its_numbers_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    goals = [goal for goal in GOALS if needs_cuda(goal)]
    assert len(goals) >= 10
    assert all("CUDA" in verdict.judged(goal, [], {})["reason"] for goal in goals)


def test_a_gpu_older_than_the_kernels_is_told_and_passed_over(
    monkeypatch: pytest.MonkeyPatch, suites: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    bench.bench(["whole"], suites / "out", None, False)
    said = "Tesla T4 is of compute capability 7.5, and the kernels need 8.0"
    assert f"{said}: the numbers of GPUs are skipped" in capsys.readouterr().err
    found = json.loads((suites / "out" / "bench.json").read_text())
    assert of(found, "saliency alone, T 1024: time of the flash backward's")["reason"] == said


def test_the_floor_is_what_the_machine_allows() -> None:
    rates = {"copy_bytes": 1e10, "float32_flops": 1e11}
    flops = 7 * 4 * 12 * 1024 * 1024 * 64  # the causal half of seven products
    assert measure.floor_of(row("layer", SYMGROUND, 1.0), rates) == pytest.approx(flops / 1e11)
    surprisal = {"stage": "surprisal", "N": 1000, "D": 4, "V": 1000, "dtype": "float32"}
    assert measure.floor_of(surprisal, rates) == pytest.approx(2 * 1000 * 4 * 1000 / 1e11)
    gate = {"stage": "gate", "B": 1, "T": 10, "H": 2, "D": 5, "M": 0, "mixed": False, "filled": False}
    assert measure.floor_of(gate, rates) == pytest.approx(2 * 4 * 100 / 1e10)  # read once, written once
    assert measure.floor_of({"stage": "trace"}, rates) is None
    assert measure.floor_of(row("layer", SYMGROUND, 1.0), {}) is None
    measured = measure.machine_rates("cpu")
    assert set(measured) == {"copy_bytes", "float32_flops"}
    assert min(measured.values()) > 1e8


def test_what_slowed_down_is_told() -> None:
    old, new = result(), result(copy.deepcopy(ROWS))
    assert verdict.slower(old, new) == []
    new["rows"][0]["seconds"] = 0.21  # within a tenth
    new["rows"][2]["seconds"] = 9.0  # a peer's
    assert verdict.slower(old, new) == []
    new["rows"][3]["seconds"] = 0.08
    assert verdict.slower(old, new) == ["attention: saliency, symground, B4 H12 T1024 D64 dtype float32: 50 ms → 80 ms"]
    new["rows"][3]["iqr"] = 0.05  # as far as its quartiles are apart
    assert verdict.slower(old, new) == []
    # On another machine only ratios are compared.
    rows = copy.deepcopy(ROWS)
    for each in rows:
        each["seconds"] *= 10
    elsewhere = {**result(rows), "machine": {**MACHINE, "threads": 64}}
    assert verdict.slower(old, elsewhere) == []
    rows[3]["seconds"] *= 2
    elsewhere = {**result(rows), "machine": {**MACHINE, "threads": 64}}
    assert verdict.slower(old, elsewhere) == [
        "saliency alone: faster than eager A∘(dO Vᵀ): 2 → 1 (another machine: ratios)"
    ]


def suites_in(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Three trivial suites: one passes, one has a failure, and the process of one dies."""
    files = {}
    (folder / "conftest.py").write_text("from benchmarks.conftest import *\n")
    dies = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    for name, what in {"whole": GOOD, "partly": "assert False", "dies": dies}.items():
        files[name] = folder / f"test_{name}.py"
        files[name].write_text(SUITE.format(layer=LAYER, what=what))
    patch.setattr(bench, "SUITES", {name: str(file) for name, file in files.items()})
    patch.setattr(measure, "machine_rates", lambda device: {"copy_bytes": 1e10, "float32_flops": 1e11})
    patch.setattr(bench, "versions", lambda: {"symground": "0", "revision": "abc"})
    # A suite's process loads only the plugin that it needs, since all installed plugins take a second.
    patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    patch.setenv("PYTEST_PLUGINS", "pytest_benchmark.plugin")
    return folder


@pytest.fixture
def suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return suites_in(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the whole suite, for tests that only read them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = suites_in(tmp_path_factory.mktemp("measured"), patch)
        assert bench.bench(["whole"], folder / "out", None, False) == 0
    return folder / "out"


@pytest.mark.slow
def test_a_suite_that_fails_or_dies_stops_no_other(suites: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = suites / "out"
    assert bench.bench((), out, None, False) == 1
    said = capsys.readouterr()
    assert "1/3 whole: measured" in said.err
    assert "2/3 partly: measured in part: 1 failed, 2 passed" in said.err
    assert "3/3 dies: failed: its process ended with -9" in said.err
    assert "layer with saliency: time of SDPA" in said.out
    found = json.loads((out / "bench.json").read_text())
    assert {r["suite"] for r in found["rows"]} == {"whole", "partly"}
    assert of(found, "layer with saliency: time of SDPA forward + backward")["ratio"]
    assert found["suites"]["whole"] == "measured"
    assert (out / "bench.md").is_file()
    assert (out / "bench.svg").read_text().startswith("<svg")
    # A second run keeps the whole suite and repeats the others.
    before = (out / "whole.json").stat().st_mtime_ns
    assert bench.bench((), out, out / "bench.json", False) == 1
    assert "whole: there already" in capsys.readouterr().err
    assert (out / "whole.json").stat().st_mtime_ns == before
    assert bench.bench(["whole"], out, None, True) == 0
    assert (out / "whole.json").stat().st_mtime_ns > before


def test_an_interrupted_run_says_so_and_keeps_what_it_had(
    suites: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = bench._run

    def stopped(suite: str, file: Path) -> str:
        if file.stem == "partly":
            raise KeyboardInterrupt
        return run(suite, file)

    monkeypatch.setattr(bench, "_run", stopped)
    assert bench.bench((), suites / "out", None, False) == 1
    assert "interrupted: what was measured is kept" in capsys.readouterr().err
    found = json.loads((suites / "out" / "bench.json").read_text())
    assert found["suites"] == {"whole": "measured", "partly": "not reached", "dies": "not reached"}
    assert found["rows"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps({"format": 0}), "is skipped: expected a file of format 1, got 0"),
        ("{", "is skipped: .*not JSON"),
        (None, "is skipped: .*does not exist"),
        (json.dumps({"format": 1}), "is skipped: 'machine'"),
    ],
)
def test_an_older_result_that_cannot_be_compared_is_skipped(
    suites: Path, measured: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    shutil.copytree(measured, suites / "out")
    old = suites / "old.json"
    if content is not None:
        old.write_text(content)
    assert bench.bench(["whole"], suites / "out", old, False) == 0
    assert re.search(said, capsys.readouterr().err)


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--only", "speed", "--out", str(tmp_path / "out")]) == 1
    assert "only: expected some of gate, mamba, lens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_measurement_that_there_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "speed"])
    assert run_benchmarks() == 2
    assert (
        "expected one of suites, plot, before-after, scaling, attention-scale, training-log, attnread, report, "
        "kernels, forecast, launch-cost, classes, ops, learnt, gpu; got 'speed'" in capsys.readouterr().err
    )


def test_every_suite_collects() -> None:
    """The file of each suite exists and has benchmarks."""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *bench.SUITES.values(), "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=root, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    for file in bench.SUITES.values():
        assert f"{file}::" in done.stdout
