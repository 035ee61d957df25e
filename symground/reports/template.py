"""Pages from templates. Every value is escaped unless it is marked as HTML."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from symground.reports.formats import table_html


def script_json(value: Any) -> Markup:
    """JSON for a script element, in which <, > and & are escaped, so that no word in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def render(template: str, **values: Any) -> str:
    """The page of a template. The filter ``table`` turns a DataFrame into an HTML table."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(f"symground.reports.{room}", ".") for room in ("pages", "views")]),
        autoescape=select_autoescape(["html", "jinja"]),
        trim_blocks=True,
    )
    environment.filters["table"] = table_html
    return environment.get_template(template).render(**values)
