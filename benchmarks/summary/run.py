"""Every goal beside its peers: a table, a JSON file and a picture.

Each suite is a file of pytest benchmarks in a separate process, so that a suite that fails or is killed does not stop
the others. A suite that was measured at this revision on this machine is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common import measure
from benchmarks.common.options import folder_to_write, json_file
from benchmarks.summary.picture import picture
from benchmarks.summary.tables import machine_line, markdown, terminal
from benchmarks.summary.verdict import collected, slower
from symground.errors import require
from symground.files import read_json, write_json
from symground.training.provenance import versions

ROOT = Path(__file__).resolve().parents[2]
#: suite → its file, the quickest first.
SUITES = {
    name: f"benchmarks/suites/test_{name}.py"
    for name in ("gate", "mamba", "lens", "training", "score", "surprisal", "attention", "reading", "trace", "sweep")
}
Say = Callable[[str], None]


def run_suites(names: Sequence[str], out: Path, again: bool, say: Say) -> Iterator[tuple[str, str]]:
    """Measure the suites that are missing, into OUT/SUITE.json; yields (suite, its outcome) when each ends."""
    out.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, 1):
        file = out / f"{name}.json"
        if not again and _is_there(file):
            became = "there already"
        else:
            say(f"{number}/{len(names)} {name} …")
            became = _run(SUITES[name], file)
        say(f"{number}/{len(names)} {name}: {became}")
        yield name, became


def _run(suite: str, file: Path) -> str:
    """Run one suite in a separate process; returns its outcome. An existing file is replaced only at the end."""
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / "measured.json"
        command = [
            sys.executable, "-m", "pytest", suite, "--benchmark-only", f"--benchmark-json={measured}", "-q",
            "-p", "no:cacheprovider",
        ]  # fmt: skip
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths, **_without_gpu()}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        tail = " ".join(done.stdout.strip().splitlines()[-1:])[:300]
        if not measured.is_file() or not measured.stat().st_size:
            return f"failed: its process ended with {done.returncode}: {tail}"
        found = json.loads(measured.read_text(encoding="utf-8"))
        write_json(
            file, {**found, "revision": versions()["revision"], "status": "whole" if not done.returncode else tail}
        )
    return "measured" if not done.returncode else f"measured in part: {tail}"


def _without_gpu() -> dict[str, str]:
    """Environment variables that hide a GPU which is too old for the kernels, so that the CPU is measured."""
    return {"CUDA_VISIBLE_DEVICES": ""} if torch.cuda.is_available() and measure.gpu_lacks() else {}


def _is_there(file: Path) -> bool:
    """Whether the whole suite was measured at this revision of the package, on this machine."""
    if not file.is_file():
        return False
    try:
        found = read_json(file)
    except ValueError:
        return False
    revision = versions()["revision"]
    same = found.get("revision") == revision and found.get("machine_info", {}).get("torch") == torch.__version__
    return bool(same and found.get("status") == "whole" and revision and not revision.endswith("+"))


def bench(only: Sequence[str], out: Path, compare: Path | None, again: bool) -> int:
    """Measure, print, and write OUT/bench.json, bench.md and bench.svg; returns 0 if every suite was measured whole.

    Raises:
        ValueError: an unknown suite.
    """
    unknown = [name for name in only if name not in SUITES]
    if unknown:
        raise ValueError(f"only: expected some of {', '.join(SUITES)}; got {', '.join(unknown)}")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    lacks = measure.gpu_lacks()
    if lacks:
        say(f"{lacks}: the numbers of GPUs are skipped")
    chosen = [name for name in SUITES if not only or name in only]
    became: dict[str, str] = dict.fromkeys(chosen, "not reached")
    interrupted = False
    try:
        for name, what in run_suites(chosen, out, again, say):
            became |= {name: what}
    except KeyboardInterrupt:
        interrupted = True
        say("interrupted: what was measured is kept, and the same command goes on from there")
    rates = {} if interrupted else measure.machine_rates("cpu" if lacks else "cuda")
    result = {**collected(SUITES, out, rates), "suites": became}
    write_json(out / "bench.json", result)
    (out / "bench.md").write_text(markdown(result), encoding="utf-8")
    (out / "bench.svg").write_text(picture(result["goals"], machine_line(result)), encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 200).print(terminal(result))
    for name, reason in result["missing"].items():
        say(f"missing: {name}: {reason}")
    if compare is not None:
        _compare(compare, result, say)
    return int(
        interrupted or any(not what.startswith(("measured", "there")) or "part" in what for what in became.values())
    )


def _compare(path: Path, result: dict[str, Any], say: Say) -> None:
    try:
        found = slower(read_json(path), result)
    except (ValueError, FileNotFoundError, KeyError) as error:
        say(f"compare: {path} is skipped: {error}")
        return
    for line in found:
        say(f"slower: {line}")
    if not found:
        say(f"nothing is slower than in {path}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--only", nargs="+", default=(), metavar="SUITE", help=f"{', '.join(SUITES)}; all by default")
    parser.add_argument(
        "--out", type=folder_to_write, default=Path("runs/bench"), help="folder of the results: SUITE.json, bench.*"
    )
    parser.add_argument(
        "--compare", type=json_file("an older bench.json", "rows"), help="an older bench.json; print what is slower now"
    )
    parser.add_argument("--again", action="store_true", help="measure again what was measured at this revision")
    given = parser.parse_args(argv)
    try:
        require("pytest_benchmark", "benchmarks", "symground[test]")
        return bench(given.only, given.out.absolute(), given.compare, given.again)
    except (ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
