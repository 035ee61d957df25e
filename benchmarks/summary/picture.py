"""The goals as one picture: each measured ratio as a multiple of its goal."""

from __future__ import annotations

from textwrap import fill
from typing import Any

from symground.reports.figures import PALETTE, figure_of, svg_of


def beyond(goal: dict[str, Any]) -> float | None:
    """The ratio as a multiple of its goal, at least 1 if the goal is met; None if it was not measured."""
    if not goal["ratio"]:
        return None
    return float(goal["ratio"] / goal["bound"] if goal["at_least"] else goal["bound"] / goal["ratio"])


def picture(goals: list[dict[str, Any]], title: str) -> str:
    """The picture as SVG: a point per measured goal on a logarithmic axis, in the order of the table."""
    shown = [(goal, x) for goal in goals if (x := beyond(goal)) is not None]
    figure = figure_of(9.0, 0.9 + 0.24 * max(1, len(shown)))
    axes = figure.subplots()
    for place, (goal, x) in enumerate(shown):
        colour = PALETTE[0] if goal["status"] == "met" else PALETTE[1]
        axes.plot([1, x], [place, place], color=colour, linewidth=1.2, alpha=0.5)
        axes.plot([x], [place], "o", color=colour, markersize=5)
    axes.axvline(1, color="#888888", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(shown)), [goal["goal"] for goal, _ in shown], fontsize=8)
    axes.invert_yaxis()
    if shown:
        low, high = min(1.0, *(x for _, x in shown)) / 1.3, max(1.0, *(x for _, x in shown)) * 1.3
        axes.set_xlim(low, high)
        ticks = [t for t in (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high]
        axes.set_xticks(ticks, [f"{t:g} ×" for t in ticks])
        axes.minorticks_off()
    axes.set_xlabel("multiple of the goal (met from 1 × on)")
    figure.suptitle(fill(title, 120), fontsize=8, x=0.01, ha="left")
    return svg_of(figure)
