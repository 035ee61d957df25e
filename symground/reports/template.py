"""Pages from templates. Every value is escaped unless it is marked as HTML."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from symground.reports.formats import table_html


def script_json(value: Any) -> Markup:
    """JSON for a script element, in which <, > and & are escaped, so that no word in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def attribute_json(value: Any) -> str:
    """JSON for an attribute in single quotes."""
    return str(script_json(value)).replace("'", "\\u0027")


def render(template: str, **values: Any) -> str:
    """The page of a template.

    The filter ``table`` turns a DataFrame into an HTML table, and ``sha256`` a script into what the page's policy says
    of it: no other script runs, whatever words a page has.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(f"symground.reports.{room}", ".") for room in ("assets", "pages", "views")]),
        autoescape=select_autoescape(["html", "jinja"]),
        trim_blocks=True,
    )
    environment.filters |= {"table": table_html, "sha256": _sha256}
    return environment.get_template(template).render(**values)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
