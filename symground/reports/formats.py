"""Numbers and tables as text: for the page, for downloads and for the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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


def number(value: float, digits: int = 2) -> str:
    """A number with ``digits`` decimals, without a minus before a zero; a dash for NaN."""
    return "–" if np.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def signed(value: float) -> str:
    """A number with its sign and two decimals, without a minus before a zero; a dash for NaN."""
    return "–" if np.isnan(value) else f"{round(value, 2) + 0.0:+.2f}"


def with_deviation(mean: float, deviation: float, digits: int = 2) -> str:
    """A mean ± its standard deviation; the mean alone if the deviation is NaN, a dash if the mean is."""
    shown = number(mean, digits)
    return shown if np.isnan(mean) or np.isnan(deviation) else f"{shown} ± {number(deviation, digits)}"


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
    return "–" if np.isnan(low) else f"[{number(low)}, {number(high)}]"


def with_interval(mean: float, low: float, high: float) -> str:
    return number(mean) if np.isnan(low) else f"{number(mean)} [{number(low)}, {number(high)}]"


def scene_share(statistics: Mapping[str, Any]) -> float:
    """The share of a corpus's tokens that belong to scenes: ENV words and patches (from its statistics.json)."""
    patches = statistics.get("documents_with_image", 0) * statistics.get("patches", 0)
    return float((statistics["env_tokens"] + patches) / statistics["tokens"])


def corpus_size(statistics: Mapping[str, Any]) -> str:
    """The number of tokens and the scenes' share of them, as text."""
    of_scene = "patches of images" if statistics.get("documents_with_image") else "ENV"
    return f"{statistics['tokens']:,} tokens, {scene_share(statistics):.0%} of them {of_scene}"
