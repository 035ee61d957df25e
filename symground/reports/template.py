"""Pages from templates: everything that is put in is escaped unless it is marked as HTML."""

from __future__ import annotations

from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from symground.reports import tables


def render(template: str, **values: Any) -> str:
    """The page; the filter ``table`` makes a DataFrame an HTML table, escaped, numbers with two decimals."""
    environment = Environment(
        loader=PackageLoader("symground.reports", "."),
        autoescape=select_autoescape(["html", "jinja"]),
        trim_blocks=True,
    )
    environment.filters["table"] = _table
    return environment.get_template(template).render(**values)


def _table(frame: pd.DataFrame) -> Markup:
    return Markup(frame.to_html(index=False, border=0, float_format=tables.number, na_rep="–", escape=True))
