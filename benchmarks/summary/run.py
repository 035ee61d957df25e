"""Every number to hold, beside its peers: a table, a JSON file, a picture.

Each suite is a file of pytest benchmarks in a process of its own, so that one that fails or is killed costs no other;
what a suite measured at this revision, on this machine, is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import measure
from benchmarks.summary.goals import GOALS, Goal, Row, machine_of, needs_cuda, rows_of
from benchmarks.summary.picture import picture
from symground.folders import read_json, write_json
from symground.optional import require
from symground.training.provenance import versions

ROOT = Path(__file__).resolve().parents[2]
#: suite → its file, the quickest first.
SUITES = {
    name: f"benchmarks/suites/test_{name}.py"
    for name in ("gate", "mamba", "lens", "training", "score", "surprisal", "attention", "trace", "sweep")
}
FORMAT = 1
#: A run is slower than an older one from here on, and only beyond the spread of both.
SLOWER = 1.10
_SAME = ("cpu", "gpu", "threads", "torch", "extension")

Say = Callable[[str], None]


def run_suites(names: Sequence[str], out: Path, again: bool, say: Say) -> Iterator[tuple[str, str]]:
    """Measure what is not there yet, into OUT/SUITE.json; (suite, what became of it), each as it ends."""
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
    """One suite in a process of its own; a file that was there is replaced at the end only."""
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
    """Where a GPU is too old for the kernels, the processor is measured."""
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


def collected(names: Iterable[str], out: Path, rates: dict[str, float]) -> dict[str, Any]:
    """Everything that the suites in ``out`` measured, and what it says of the numbers to hold."""
    rows: list[Row] = []
    missing: dict[str, str] = {}
    machine: dict[str, Any] = {}
    revisions: dict[str, str | None] = {}
    for name in names:
        file = out / f"{name}.json"
        if file.is_file():
            found = read_json(file)
            revisions[name] = found.get("revision")
            machine = machine or found["machine_info"]
            missing |= found.get("missing", {})
            rows += [{**row, "suite": name} for row in rows_of(found)]
    for row in rows:
        floor = measure.floor_of(row, rates)
        if floor is not None:
            row["floor_seconds"] = floor
    return {
        "format": FORMAT, "machine": machine, "versions": versions(), "revisions": revisions, "rates": rates,
        "missing": missing, "goals": [judged(goal, rows, missing) for goal in GOALS], "rows": rows,
    }  # fmt: skip


def judged(goal: Goal, rows: list[Row], missing: dict[str, str]) -> dict[str, Any]:
    """One number to hold: what was measured on either side, the ratio, whether it holds, and if not why not."""
    ours, theirs = (goal.row(rows, *side) for side in (goal.of, goal.to))
    ratio = goal.measured(rows)
    found: dict[str, Any] = {
        "goal": goal.text, "bound": goal.bound, "at_least": goal.faster, "quantity": goal.quantity, "ratio": ratio,
        "of": {"stage": goal.of[0], "peer": goal.of[1], **_side(ours, goal)},
        "to": {"stage": goal.to[0], "peer": goal.to[1], **_side(theirs, goal)},
    }  # fmt: skip
    if ratio is not None:
        met = goal.met(ratio)
        return {**found, "status": "met" if met else "open", "reason": "" if met else goal.why or "below the goal"}
    return {**found, "status": "open", "reason": _why_not(goal, missing)}


def _side(row: Row | None, goal: Goal) -> dict[str, Any]:
    if row is None:
        return {}
    names = (goal.quantity, "seconds", "iqr", "rounds", "peak_bytes", "floor_seconds")
    return {name: row[name] for name in dict.fromkeys(names) if row.get(name) is not None}


def _why_not(goal: Goal, missing: dict[str, str]) -> str:
    for _, peer in (goal.of, goal.to):
        for name, reason in missing.items():
            if peer in name:
                return f"{peer}: {reason}"
    return (measure.gpu_lacks() if needs_cuda(goal) else None) or "not measured in this run"


def slower(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What of ours has become slower, in words.

    On the same machine by its time, where it grew by a tenth and beyond the spread of both; elsewhere by its ratio to
    its peers.

    Raises:
        ValueError: ``old`` is of another format.
    """
    if old.get("format") != FORMAT:
        raise ValueError(f"expected a file of format {FORMAT}, got {old.get('format')}")
    if any(old["machine"].get(name) != new["machine"].get(name) for name in _SAME):
        before = {goal["goal"]: goal for goal in old["goals"] if goal["ratio"]}
        return [
            f"{goal['goal']}: {before[goal['goal']]['ratio']:.3g} → {goal['ratio']:.3g} (another machine: ratios)"
            for goal in new["goals"]
            if goal["ratio"] and goal["goal"] in before
            and _worse(before[goal["goal"]]["ratio"], goal["ratio"], goal["at_least"]) > SLOWER
        ]  # fmt: skip
    known = {_key(row): row for row in old["rows"]}
    found = []
    for row in new["rows"]:
        was = known.get(_key(row))
        if was is None or not row["peer"].startswith(("symground", "sg.")) or not was["seconds"]:
            continue
        spread = row.get("iqr", 0.0) + was.get("iqr", 0.0)
        if row["seconds"] > SLOWER * was["seconds"] and row["seconds"] - was["seconds"] > spread:
            found.append(f"{row['suite']}: {_called(row)}: {_time(was['seconds'])} → {_time(row['seconds'])}")
    return found


def _worse(old: float, new: float, at_least: bool) -> float:
    return old / new if at_least else new / old


#: Of a row, what was measured; all else says of what.
_MEASURED = {
    "seconds", "iqr", "rounds", "peak_bytes", "result_bytes", "floor_seconds", "seconds_a_pair", "seconds_a_step",
    "pairs",
}  # fmt: skip


def _key(row: Row) -> str:
    return json.dumps({name: value for name, value in row.items() if name not in _MEASURED}, sort_keys=True)


def shape_of(row: Row) -> str:
    """All of what a row is a measurement of."""
    of = {name: value for name, value in row.items() if name not in _MEASURED | {"suite", "stage", "peer", "device"}}
    return " ".join(f"{name}{value}" if len(name) == 1 else f"{name} {value}" for name, value in of.items())


def _called(row: Row) -> str:
    return f"{row['stage']}, {row['peer']}, {shape_of(row)}"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def ratio_of(goal: dict[str, Any], value: float | None) -> str:
    """A ratio or bound of a goal: a speed-up carries its ×."""
    if value is None:
        return "–"
    return (f"{value:,.0f}" if value >= 100 else f"{value:.3g}") + (" ×" if goal["at_least"] else "")


def amount(side: dict[str, Any], goal: dict[str, Any]) -> str:
    """What was measured on one side, with its spread."""
    value = side.get(goal["quantity"])
    if value is None:
        return "–"
    if goal["quantity"].endswith("bytes"):
        return f"{value / 2**20:,.0f} MiB"
    spread = side.get("iqr")
    return _time(value) + (f" ± {spread / side['seconds']:.0%}" if spread and side.get("seconds") else "")


def terminal(result: dict[str, Any]) -> Table:
    """The numbers to hold as a table for the terminal."""
    table = Table(title=machine_line(result), title_justify="left", expand=False)
    for name in ("number to hold", "ours", "peer", "theirs", "ratio", "goal", "of the floor", ""):
        table.add_column(name, overflow="fold")
    for cells in cells_of(result):
        table.add_row(*cells)
    return table


def cells_of(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for goal in result["goals"]:
        ours = goal["of"]
        floor = f"{ours['floor_seconds'] / ours['seconds']:.0%}" if ours.get("floor_seconds") else "–"
        rows.append(
            [
                goal["goal"], amount(ours, goal), goal["to"]["peer"], amount(goal["to"], goal),
                ratio_of(goal, goal["ratio"]),
                f"{'≥' if goal['at_least'] else '≤'} {ratio_of(goal, goal['bound'])}", floor,
                goal["status"] + (f": {goal['reason']}" if goal["reason"] else ""),
            ]
        )  # fmt: skip
    return rows


def markdown(result: dict[str, Any]) -> str:
    """The same for a page, with the peers that are missing."""
    lines = [
        machine_line(result), "",
        "Times are medians ± the interquartile range; memory is the peak above the inputs. Of the floor: the time that "
        "the machine's measured copy and product rates allow, over ours.", "",
        "| number to hold | ours | peer | theirs | ratio | goal | of the floor | |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in cells_of(result)),
    ]  # fmt: skip
    lines += ["", "## All that was measured", *_everything(result["rows"])]
    if result["missing"]:
        lines += ["", "## Missing here", "", *(f"- {name}: {reason}" for name, reason in result["missing"].items())]
    return "\n".join([*lines, ""])


def _everything(rows: list[Row]) -> list[str]:
    """A table for each stage and shape: peers, the quickest first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row['suite']}: {row['stage']}, {shape_of(row)}", []).append(row)
    lines = []
    for title, of_group in groups.items():
        lines += ["", f"**{title}**", "", "| | time | memory, MiB | of the floor |", "|---|---|---|---|"]
        for row in sorted(of_group, key=lambda row: row.get("seconds_a_pair", row["seconds"])):
            memory = f"{row['peak_bytes'] / 2**20:,.0f}" if row.get("peak_bytes") is not None else "–"
            floor = f"{row['floor_seconds'] / row['seconds']:.0%}" if row.get("floor_seconds") else "–"
            each = row.get("seconds_a_pair", row.get("seconds_a_step", row["seconds"]))
            seconds = _time(each) + (" a pair" if "seconds_a_pair" in row else "")
            seconds += f" ± {row['iqr'] / row['seconds']:.0%}" if row["seconds"] else ""
            lines.append(f"| {row['peer']} | {seconds} | {memory} | {floor} |")
    return lines


def machine_line(result: dict[str, Any]) -> str:
    machine, of = result["machine"], result["versions"]
    if not machine:
        return "nothing was measured"
    suites: dict[str, list[str]] = {}  # of each revision; those that were there already may be of an earlier one
    for suite, revision in result.get("revisions", {}).items() or [("", of.get("revision"))]:
        suites.setdefault((revision or "unknown")[:10], []).append(suite)
    several = len(suites) > 1
    at = "; ".join(f"{of_them} ({', '.join(names)})" if several else of_them for of_them, names in suites.items())
    return f"{machine_of(result, Path())}, Python {machine['python']}, symground {of['symground']} at {at}"


def bench(only: Sequence[str], out: Path, compare: str | None, again: bool) -> int:
    """Measure, print, write OUT/bench.json, bench.md and bench.svg; 0 where every suite ran whole.

    Raises:
        ValueError: a suite that there is not.
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


def _compare(path: str, result: dict[str, Any], say: Say) -> None:
    try:
        found = slower(read_json(Path(path)), result)
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
        "--out", type=Path, default=Path("runs/bench"), help="folder of the results: SUITE.json, bench.*"
    )
    parser.add_argument("--compare", help="an older bench.json: what has become slower since is told")
    parser.add_argument("--again", action="store_true", help="measure what is there already of this revision")
    given = parser.parse_args(argv)
    try:
        require("pytest_benchmark", "benchmarks", "symground[test]")
        return bench(given.only, given.out.resolve(), given.compare, given.again)
    except (ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
