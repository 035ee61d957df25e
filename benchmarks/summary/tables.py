"""The goals as tables: for the terminal, and for a page with all measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.summary.goals import Row, machine_of

#: The fields of a row that are measured; the others describe the measurement.
MEASURED = {
    "seconds", "iqr", "rounds", "peak_bytes", "result_bytes", "floor_seconds", "seconds_a_pair", "seconds_a_step",
    "pairs",
}  # fmt: skip


def shape_of(row: Row) -> str:
    """The fields of a row that describe its shape, as text."""
    of = {name: value for name, value in row.items() if name not in MEASURED | {"suite", "stage", "peer", "device"}}
    return " ".join(f"{name}{value}" if len(name) == 1 else f"{name} {value}" for name, value in of.items())


def called(row: Row) -> str:
    return f"{row['stage']}, {row['peer']}, {shape_of(row)}"


def time_of(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def ratio_of(goal: dict[str, Any], value: float | None) -> str:
    """A ratio or bound of a goal as text; a speed-up ends with ×."""
    if value is None:
        return "–"
    return (f"{value:,.0f}" if value >= 100 else f"{value:.3g}") + (" ×" if goal["at_least"] else "")


def amount(side: dict[str, Any], goal: dict[str, Any]) -> str:
    """The measured time or memory of one side, with its spread."""
    value = side.get(goal["quantity"])
    if value is None:
        return "–"
    if goal["quantity"].endswith("bytes"):
        return f"{value / 2**20:,.0f} MiB"
    spread = side.get("iqr")
    return time_of(value) + (f" ± {spread / side['seconds']:.0%}" if spread and side.get("seconds") else "")


def terminal(result: dict[str, Any]) -> Table:
    """The goals as a table for the terminal."""
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
    """The goals as a page, with all measurements and the missing peers."""
    lines = [
        machine_line(result), "",
        "Times are medians ± the interquartile range. Memory is the peak above the inputs. A ratio with × is a "
        "speed-up (theirs / ours), a ratio without × is a fraction (ours / theirs). “Of the floor” is the shortest "
        "time that the machine's measured rates of copies and products allow, divided by ours.", "",
        "| number to hold | ours | peer | theirs | ratio | goal | of the floor | |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in cells_of(result)),
    ]  # fmt: skip
    lines += ["", "## All measurements", *_everything(result["rows"])]
    if result["missing"]:
        lines += [
            "",
            "## Missing on this machine",
            "",
            *(f"- {name}: {reason}" for name, reason in result["missing"].items()),
        ]
    return "\n".join([*lines, ""])


def _everything(rows: list[Row]) -> list[str]:
    """A table for each stage and shape, with the fastest peer first."""
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
            seconds = time_of(each) + (" a pair" if "seconds_a_pair" in row else "")
            seconds += f" ± {row['iqr'] / row['seconds']:.0%}" if row["seconds"] else ""
            lines.append(f"| {row['peer']} | {seconds} | {memory} | {floor} |")
    return lines


def machine_line(result: dict[str, Any]) -> str:
    machine, of = result["machine"], result["versions"]
    if not machine:
        return "nothing was measured"
    suites: dict[str, list[str]] = {}  # revision → its suites; some may have been measured at an earlier revision
    for suite, revision in result.get("revisions", {}).items() or [("", of.get("revision"))]:
        suites.setdefault((revision or "unknown")[:10], []).append(suite)
    several = len(suites) > 1
    at = "; ".join(f"{of_them} ({', '.join(names)})" if several else of_them for of_them, names in suites.items())
    return f"{machine_of(result, Path())}, Python {machine['python']}, symground {of['symground']} at {at}"
