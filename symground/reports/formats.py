"""Numbers and tables as people read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from symground.analysis.causal import enough


def table_html(frame: pd.DataFrame) -> Markup:
    """A table for the page: numbers as people read them, every word escaped."""
    shown = pd.DataFrame({column: frame[column].map(_reader(str(column))) for column in frame.columns})
    html = shown.to_html(index=False, border=0, na_rep="–", escape=True)
    return Markup(html.replace("<th>", '<th scope="col">'))


#: What a spreadsheet takes for the beginning of a formula, in the wide forms of East Asian keyboards too.
_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def csv_of(frame: pd.DataFrame) -> str:
    """A table as CSV. A cell of text that a spreadsheet would run as a formula begins with an apostrophe instead.

    Numbers stay as they are, negative ones too. Source: OWASP, "CSV Injection".
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
    """Two decimals, or so many, and no minus before a zero; a dash where there is no number."""
    return "–" if np.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def signed(value: float) -> str:
    """With its sign, two decimals, and no minus before a zero."""
    return "–" if np.isnan(value) else f"{round(value, 2) + 0.0:+.2f}"


def with_deviation(mean: float, deviation: float, digits: int = 2) -> str:
    """A mean and its standard deviation; the mean alone where there is no deviation, a dash without a mean."""
    shown = number(mean, digits)
    return shown if np.isnan(mean) or np.isnan(deviation) else f"{shown} ± {number(deviation, digits)}"


#: What stands where a comparison would, of controls that were drawn from too few heads.
FEW = "too few others"


def control_cell(row: Mapping[Any, Any], digits: int = 2) -> str:
    """What random heads did in a row with the columns control, control_sd, short and examples."""
    if not enough(row["short"], row["examples"]):
        return FEW
    return with_deviation(row["control"], row["control_sd"], digits)


def p_value(p: float) -> str:
    return "–" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def stars(p: float) -> str:
    """As the study marks significance."""
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else ""


def interval(low: float, high: float) -> str:
    return "–" if np.isnan(low) else f"[{number(low)}, {number(high)}]"


def with_interval(mean: float, low: float, high: float) -> str:
    return number(mean) if np.isnan(low) else f"{number(mean)} [{number(low)}, {number(high)}]"


def scene_share(statistics: Mapping[str, Any]) -> float:
    """Of a corpus's tokens (its statistics.json), the part that tells or shows the scene: ENV words and patches."""
    patches = statistics.get("documents_with_image", 0) * statistics.get("patches", 0)
    return float((statistics["env_tokens"] + patches) / statistics["tokens"])


def corpus_size(statistics: Mapping[str, Any]) -> str:
    """Tokens and the scene's share of them, in words."""
    of_scene = "patches of images" if statistics.get("documents_with_image") else "ENV"
    return f"{statistics['tokens']:,} tokens, {scene_share(statistics):.0%} of them {of_scene}"
