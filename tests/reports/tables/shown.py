"""Tables of the page as a browser shows them, and an independent implementation of numbers as the page writes them."""

from __future__ import annotations

from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np

Row = dict[str, Any]


class Reader(HTMLParser):
    """The rows of a table of the page: column → the cell's text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.lines: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self.lines[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.lines and self.lines[-1] and data.strip():
            self.lines[-1][-1] += data.strip()

    @property
    def rows(self) -> list[dict[str, str]]:
        return [dict(zip(self.lines[0], line, strict=True)) for line in self.lines[1:]]


def two(x: float, digits: int = 2) -> str:
    """At least these digits, and as many as show that a number is not zero."""
    if np.isnan(x) or abs(x) < 1e-12:
        return "–" if np.isnan(x) else "0.00"
    return next(text for text in (f"{x:.{more}f}" for more in range(digits, 9)) if float(text))


def apart(values: Sequence[float]) -> list[str]:
    """The fewest digits at which the numbers, which are in an order, are all different."""
    for digits in range(2, 7):
        found = [two(value, digits) for value in values]
        if len(set(found)) == len(set(values)):
            break
    return found


def three(x: float) -> str:
    return f"{x:.3f}"


def whole(x: float) -> str:
    return "never" if np.isinf(x) else f"{round(x):,}" if x >= 100 else f"{x:.2f}"


def probability(p: float) -> str:
    return "–" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def ends(low: float, high: float) -> str:
    return f"[{two(low)}, {two(high)}]"


def starred(p: float) -> str:
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else ""


def compare(shown: Sequence[dict[str, str]], expected: Sequence[Row]) -> None:
    assert [list(row) for row in shown] == [list(row) for row in expected]
    assert shown == [{name: str(value) for name, value in row.items()} for row in expected]
