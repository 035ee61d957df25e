"""Numbers and tables as text: for the page, for downloads and for the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from symground.analysis.causal import enough


def table_html(frame: pd.DataFrame) -> Markup:
    """A table as HTML: numbers are rounded, and every word is escaped."""
    shown = pd.DataFrame({column: frame[column].map(_reader(str(column))) for column in frame.columns})
    html = shown.to_html(index=False, border=0, na_rep="–", escape=True)
    return Markup(html.replace("<th>", '<th scope="col">'))


#: Characters at which a spreadsheet begins a formula, with their wide forms on East Asian keyboards.
_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def csv_of(frame: pd.DataFrame) -> str:
    """A table as CSV. A text that a spreadsheet would run as a formula gets an apostrophe before it.

    Numbers are unchanged, also negative ones. Source: OWASP, "CSV Injection".
    """
    texts = frame.select_dtypes(exclude=["number", "bool"])
    safe = frame.assign(**{str(name): texts[name].map(_harmless) for name in texts})
    return str(safe.rename(columns=_harmless).to_csv(index=False, lineterminator="\r\n"))


def _harmless(value: Any) -> Any:
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def _reader(column: str) -> Callable[[object], object]:
    probability = column == "p" or column.startswith("p ") or column.endswith(" p")

    def read(value: object) -> object:
        if value is None or value is pd.NA:
            return "–"
        if isinstance(value, (bool, np.bool_)):
            return "yes" if value else "no"
        return _number(float(value), probability) if isinstance(value, (float, np.floating)) else value

    return read


def _number(value: float, probability: bool) -> str:
    if np.isnan(value):
        return "–"
    if np.isinf(value):
        return "never"
    if probability:
        return p_value(value)
    return f"{value:,.0f}" if value == round(value) and abs(value) >= 100 else number(value)


#: Differences of numbers of order one that are smaller than this are rounding errors.
_NOTHING = 1e-12
#: The most decimals of numbers that share them, and of a number by itself.
_SHARED, _MOST = 4, 6


def number(value: float, digits: int = 2) -> str:
    """A number with ``digits`` decimals, or with as many more as it takes not to be written as 0; a dash for NaN."""
    return _written(value, _decimals(value, digits))


def signed(value: float) -> str:
    """A number as `number` writes it, with its sign; +0.00 for zero."""
    return _written(value, _decimals(value), "+")


def numbers(*values: float, digits: int = 2) -> list[str]:
    """Numbers that stand together. Small ones have the same decimals: as many as the smallest needs."""
    sizes = [abs(value) for value in values if not np.isnan(value) and abs(value) >= _NOTHING]
    needed = max((_decimals(size, digits) for size in sizes), default=digits)
    if sizes and max(sizes) < 0.1 and needed <= _SHARED:
        digits = needed
    return [number(value, digits) for value in values]


def told_apart(values: Sequence[float], digits: int = 2) -> list[str]:
    """Numbers in an order, with the decimals at which neighbours that differ are written differently."""
    found = [number(value, digits) for value in values]
    for more in range(digits, _MOST + 1):
        found = [number(value, more) for value in values]
        pairs = zip(values[:-1], values[1:], found[:-1], found[1:], strict=True)
        if all(a != b or abs(x - y) < _NOTHING or np.isnan(x) or np.isnan(y) for x, y, a, b in pairs):
            break
    return found


def percent(share: float) -> str:
    """A share in percent, without decimals unless it is too small for that."""
    return f"{number(100 * share, 0)}%"


def _decimals(value: float, digits: int = 2) -> int:
    """The decimals, at least ``digits``, at which a number is not written as 0."""
    if np.isnan(value) or np.isinf(value) or abs(value) < _NOTHING:
        return digits
    while digits < _MOST and not round(abs(value), digits):
        digits += 1
    return digits


def _written(value: float, digits: int, sign: str = "") -> str:
    if np.isnan(value):
        return "–"
    shown = round(value, digits) + 0.0
    return f"{value:{sign}.0e}" if not shown and abs(value) >= _NOTHING else f"{shown:{sign}.{digits}f}"


def with_deviation(mean: float, deviation: float, digits: int = 2) -> str:
    """A mean ± its standard deviation; the mean alone if the deviation is NaN, a dash if the mean is."""
    if np.isnan(mean) or np.isnan(deviation):
        return number(mean, digits)
    return " ± ".join(numbers(mean, deviation, digits=digits))


#: Shown in place of a control that was drawn from too few heads for a comparison.
FEW = "too few others"


def control_cell(row: Mapping[Any, Any], digits: int = 2) -> str:
    """The control of a row with the columns control, control_sd, short and examples."""
    if not enough(row["short"], row["examples"]):
        return FEW
    return with_deviation(row["control"], row["control_sd"], digits)


def p_value(p: float) -> str:
    return "–" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def stars(p: float) -> str:
    """*** for p < 0.001, ** for p < 0.01, * for p < 0.05, as in the study."""
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else ""


def interval(low: float, high: float) -> str:
    return "–" if np.isnan(low) else f"[{', '.join(numbers(low, high))}]"


def with_interval(mean: float, low: float, high: float) -> str:
    if np.isnan(low):
        return number(mean)
    mid, *ends = numbers(mean, low, high)
    return f"{mid} [{', '.join(ends)}]"


def scene_share(statistics: Mapping[str, Any]) -> float:
    """The share of a corpus's tokens that belong to scenes: ENV words and patches (from its statistics.json)."""
    patches = statistics.get("documents_with_image", 0) * statistics.get("patches", 0)
    return float((statistics["env_tokens"] + patches) / statistics["tokens"])


def corpus_size(statistics: Mapping[str, Any]) -> str:
    """The number of tokens and the scenes' share of them, as text."""
    of_scene = "patches of images" if statistics.get("documents_with_image") else "ENV"
    return f"{statistics['tokens']:,} tokens, {scene_share(statistics):.0%} of them {of_scene}"
