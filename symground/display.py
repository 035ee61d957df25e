"""The display of objects: a few lines in a terminal, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_WIDEST = 100


def as_text(name: str, rows: Mapping[str, object]) -> str:
    """The name, then one line for each row."""
    wide = max(map(len, rows), default=0)
    return "\n".join([name, *(f"  {key:<{wide}}  {_short(value)}" for key, value in rows.items())])


def as_table(name: str, rows: Mapping[str, object]) -> str:
    """The same as an HTML table, with all text escaped."""
    left = 'style="text-align:left"'
    cells = "".join(
        f"<tr><th {left}>{escape(key)}</th><td {left}>{escape(_short(value))}</td></tr>" for key, value in rows.items()
    )
    return f"<table><caption>{escape(name)}</caption>{cells}</table>"


def some(words: Sequence[object], most: int = 6) -> str:
    """The first words, and the number of all."""
    listed = ", ".join(map(str, words[:most]))
    return listed if len(words) <= most else f"{listed}, … ({len(words)})"


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
