"""The measurements of all suites, the goals judged by them, and what is slower than in an older result."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import measure
from benchmarks.summary.goals import GOALS, Goal, Row, needs_cuda, rows_of
from benchmarks.summary.tables import MEASURED, called, time_of
from symground.files import read_json
from symground.training.provenance import versions

FORMAT = 1
#: From this ratio of times on, a run is slower than an older one, if the difference exceeds the spread of both.
SLOWER = 1.10
_SAME = ("cpu", "gpu", "threads", "torch", "extension")


def collected(names: Iterable[str], out: Path, rates: dict[str, float]) -> dict[str, Any]:
    """The content of bench.json: all measurements of the suites in ``out``, and the goals judged by them."""
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
    """A goal with the measurements of both sides, their ratio, whether the goal is met, and if not, why."""
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
    """Our measurements that are slower in ``new`` than in ``old``, as text.

    On the same machine times are compared: a time is slower if it grew by a tenth and by more than the spread of both.
    On another machine the ratios to the peers are compared.

    Raises:
        ValueError: ``old`` has another format.
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
            found.append(f"{row['suite']}: {called(row)}: {time_of(was['seconds'])} → {time_of(row['seconds'])}")
    return found


def _worse(old: float, new: float, at_least: bool) -> float:
    return old / new if at_least else new / old


def _key(row: Row) -> str:
    return json.dumps({name: value for name, value in row.items() if name not in MEASURED}, sort_keys=True)
