"""The page in a real browser: it loads without an error, the pickers work, tables download, and nothing overflows.

The tests need Playwright and a Chromium (``apt-get install chromium``, or a path in CHROMIUM), and are skipped without.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import symground as sg
from symground.analysis.results import read_table
from tests.reports.browser import browser, open_page

__all__ = ["browser", "open_page"]

Made = Callable[..., Path]


@pytest.fixture
def opened(open_page: Callable[..., Any], rendered: Path) -> Callable[..., Any]:
    """Opens a study's page."""

    def open_(width: int = 1000, path: Path | None = None, **more: Any) -> Any:
        return open_page(path or rendered, width, **more)

    return open_


@pytest.mark.parametrize("width", [390, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_and_fits(opened: Callable[..., Any], tmp_path: Path, width: int, scheme: str) -> None:
    page = opened(width, color_scheme=scheme)
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h1").is_visible()
    shot = tmp_path / "page.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 50_000
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(int(x) for x in colour.removeprefix("rgb(").removesuffix(")").split(",")) < 200
    assert dark == (scheme == "dark")


def test_the_pickers_show_what_they_say(opened: Callable[..., Any], made: Made) -> None:
    study = made("another")
    page = opened(path=sg.report(study))
    told = page.locator("#explorer-told")
    maps = read_table(study, "maps")
    maps = maps[maps["seed"] == 0]
    assert "surprisal of “ball” is 2.00 nats" in told.inner_text()  # the last checkpoint
    page.select_option("#pick-noun", "dog")
    assert "“dog”" in told.inner_text()
    page.select_option("#pick-layer", "2")
    page.locator("#pick-step").fill("1")
    assert page.locator("#step-shown").inner_text() == "step 100"
    assert "is 5.00 nats" in told.inner_text()
    (row,) = maps[
        (maps["step"] == 100) & (maps["noun"] == "dog") & (maps["context"] == 0) & (maps["layer"] == 2)
    ].to_dict("records")
    heads = page.locator("#map-heads td").all_inner_texts()
    assert len(heads) == 2 * 6
    for shown, exact in zip(heads, row["rows"], strict=True):
        assert float(shown.replace("·", "0")) == pytest.approx(float(exact), abs=0.02)
    cells = page.locator("#map-saliency tbody tr:last-child td").all_inner_texts()
    for shown, exact in zip(cells, row["saliency"][-6:], strict=True):
        assert float(shown.replace("·", "0")) == pytest.approx(float(exact), abs=0.02)
    assert page.locator("#map-grid td").count() == 3 * 2
    assert page.locator("#map-curve svg polyline").count() == 2
    assert page.complaints == []


def test_by_keyboard_alone(opened: Callable[..., Any]) -> None:
    page = opened()
    page.locator("#pick-step").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#step-shown").inner_text() == "step 200"
    assert page.locator("#pick-step").get_attribute("aria-valuetext") == "step 200"
    page.locator("#pick-noun").focus()
    page.keyboard.press("ArrowDown")
    assert "“dog”" in page.locator("#explorer-told").inner_text()
    # Every scrolling region can be focused, and every control has a name.
    wrong = {
        ".scroll": "e.tabIndex !== 0 || !e.ariaLabel",
        "select, input": "!e.labels.length",
        "[role=img]": "!(e.ariaLabel || e.querySelector('title'))",
    }
    for which, unlike in wrong.items():
        found = page.evaluate(f"[...document.querySelectorAll('{which}')].map(e => {unlike})")
        assert found
        assert not any(found)


def test_tables_download(opened: Callable[..., Any], made: Made, tmp_path: Path) -> None:
    study = made("another")
    page = opened(path=sg.report(study), accept_downloads=True)
    with page.expect_download() as started:
        page.locator('a[download="strongest.csv"]').click()
    assert started.value.suggested_filename == "strongest.csv"
    started.value.save_as(tmp_path / "x.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "x.csv"), read_table(study, "sweep"), check_dtype=False)


def test_words_of_the_corpus_do_nothing(opened: Callable[..., Any], made: Made) -> None:
    evil = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"
    study = made("another")
    maps = read_table(study, "maps")
    maps["tokens"] = [[evil, *list(tokens)[1:]] for tokens in maps["tokens"]]
    maps["target"] = evil
    maps.to_parquet(study / "results" / "maps.parquet")
    page = opened(path=sg.report(study))
    page.select_option("#pick-noun", "dog")
    assert page.title() == "symground: another"
    assert evil in page.locator("#explorer-told").inner_text()
    assert page.locator("img").count() == 0
    assert page.complaints == []


def test_comparison_and_no_maps(opened: Callable[..., Any], made: Made, tmp_path: Path) -> None:
    page = opened(390, path=sg.report(made("a"), made("b"), out=tmp_path / "c.html"))
    assert page.complaints == []
    assert page.locator("#explorer").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
