"""The page of a model with learnt weights in a real browser: in two widths, light and dark, by pointer and keyboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import symground as sg
from symground.cli import main
from tests.reports.browser import browser, check_page, open_page
from tests.reports.test_view_page import agrees, row

__all__ = ["browser", "open_page"]
pytestmark = pytest.mark.slow
TEXT, ANSWER = "Anna has a red ball. Ben asks her: what do you have? She says: a", " red ball"


@pytest.fixture(scope="module")
def page_file(smollm2: Path, tmp_path_factory: Any) -> Path:
    file: Path = tmp_path_factory.mktemp("trace") / "trace.html"
    asked = [
        "trace",
        str(smollm2),
        TEXT,
        "--answer",
        ANSWER,
        "--groups",
        "scene=Anna has a red ball",
        "--silence",
        "16.0",
    ]
    assert main([*asked, "--out", str(file)]) == 0
    return file


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_fits_and_is_accessible(
    open_page: Callable[..., Any], page_file: Path, width: int, scheme: str
) -> None:
    assert page_file.stat().st_size < 2_000_000
    for address in ("", "#target=1&layer=16&head=2&token=5"):
        page = open_page(page_file, width, address, color_scheme=scheme)
        page.wait_for_selector("body[data-ready]")
        check_page(page, width)


def test_each_word_of_the_answer_has_the_traces_values(
    open_page: Callable[..., Any], page_file: Path, smollm2: Path
) -> None:
    traced = sg.trace(
        sg.load(smollm2), prompt=TEXT, answer=ANSWER, tokenizer=sg.load_tokenizer(smollm2), per_token=True, rows=True
    )
    page = open_page(page_file)
    page.wait_for_selector("body[data-ready]")
    agrees(page, row(traced, 0))
    page.locator("#targets button").nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    agrees(page, row(traced, 1))
