"""The pages in docs/ that show what symground makes: small, whole, and of nobody's machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import symground
from tests.reports.browser import browser, check_page, open_page

__all__ = ["browser", "open_page"]
DOCS = Path(symground.__file__).resolve().parent.parent / "docs"
PAGES = ("example-study.html", "example-trace.html")


@pytest.mark.parametrize("name", PAGES)
def test_it_is_small_and_names_no_machine(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    assert len(text.encode()) < 2_000_000
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", text)
    assert name in (DOCS.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens(open_page: Callable[..., Any], name: str, width: int, scheme: str) -> None:
    page = open_page(DOCS / name, width, color_scheme=scheme)
    page.wait_for_selector("#text button" if "trace" in name else "#explorer button")
    check_page(page, width)
