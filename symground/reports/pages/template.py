"""Pages from templates. Every value is escaped unless it is marked as HTML."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from symground.reports.formats import table_html


def render(template: str, **values: Any) -> str:
    """The page of a template. The filter ``table`` turns a DataFrame into an HTML table."""
    environment = Environment(
        loader=PackageLoader("symground.reports.pages", "."),
        autoescape=select_autoescape(["html", "jinja"]),
        trim_blocks=True,
    )
    environment.filters["table"] = table_html
    return environment.get_template(template).render(**values)
