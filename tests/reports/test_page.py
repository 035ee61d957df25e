"""The page in a real browser: it loads without an error, the pickers work, tables download, and nothing overflows.

The tests need Playwright and a Chromium (``apt-get install chromium``, or a path in CHROMIUM), and are skipped without.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import symground as sg
from symground.analysis.results import read_table
from symground.data.words import cdi_categories
from tests.reports.browser import browser, check_page, open_page
from tests.reports.test_untrusted_words import corpus_of

__all__ = ["browser", "open_page"]

Made = Callable[..., Path]


@pytest.fixture
def opened(open_page: Callable[..., Any], rendered: Path) -> Callable[..., Any]:
    """Opens a study's page."""

    def open_(width: int = 1000, path: Path | None = None, address: str = "", **more: Any) -> Any:
        return open_page(path or rendered, width, address, **more)

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


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_kind_of_page_is_accessible(
    opened: Callable[..., Any], made: Made, rendered: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    corpus_of(tmp_path, ["ball", "dog"])
    for path in (rendered, sg.report(made("a"), made("b"), out=tmp_path / "c.html"), tmp_path / "corpus.html"):
        page = opened(width, path=path, color_scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        check_page(page, width)


def values(page: Any, buttons: str) -> list[float]:
    """The numbers that the labels of the buttons say."""
    labels = page.locator(buttons).evaluate_all("(all) => all.map((e) => e.getAttribute('aria-label'))")
    return [float(re.search(r": ([+-]?[\d.]+) nats", label)[1]) for label in labels]  # type: ignore[index]


def test_the_explorer_shows_the_maps(opened: Callable[..., Any], made: Made) -> None:
    study = made("another")
    page = opened(path=sg.report(study))
    told = page.locator("#explorer-told")
    maps = read_table(study, "maps")
    maps = maps[maps["seed"] == 0]
    assert page.locator('nav a[href="#explorer"]').is_visible()
    assert "surprisal of “ball” is 2.00 nats" in told.inner_text()  # the last checkpoint
    page.select_option("#pick-noun", "dog")
    assert "“dog”" in told.inner_text()
    page.locator("#pick-step").fill("1")
    assert page.locator("#step-shown").inner_text() == "step 100"
    assert "is 5.00 nats" in told.inner_text()
    rows = maps[(maps["step"] == 100) & (maps["noun"] == "dog") & (maps["context"] == 0)].sort_values("layer")
    heads = np.stack([np.asarray(row, float).reshape(2, 6) for row in rows["rows"]])  # [layer,head,token]
    near = {"abs": float(np.abs(heads).max()) / 100 * 6 + 6e-4}
    assert values(page, "#map-tokens button") == pytest.approx(heads.sum((0, 1)).tolist(), **near)
    noun = 2  # of the tokens: heads are shown by what they take from it
    assert values(page, "#map-heads button") == pytest.approx(heads[..., noun].ravel().tolist(), **near)
    page.select_option("#pick-layer", "2")
    assert values(page, "#map-tokens button") == pytest.approx(heads[2].sum(0).tolist(), **near)
    cells = page.locator("#map-saliency tbody tr:last-child td").all_inner_texts()
    assert [float(x) for x in cells] == pytest.approx(
        np.asarray(rows["saliency"].iloc[2][-6:], float).tolist(), abs=0.02
    )
    page.select_option("#pick-head", "1")
    assert values(page, "#map-tokens button") == pytest.approx(heads[2, 1].tolist(), **near)
    page.locator("#map-tokens button").nth(noun).click()  # of no token: the sum of each head's absolute saliency
    assert values(page, "#map-heads button") == pytest.approx(np.abs(heads).sum(-1).ravel().tolist(), **near)
    assert page.locator("#map-curve svg polyline").count() == 2
    assert page.complaints == []
    # The same state from the address, in a page of its own.
    again = opened(path=study / "report.html", address=page.evaluate("location.hash"))
    assert values(again, "#map-tokens button") == values(page, "#map-tokens button")
    assert values(again, "#map-heads button") == values(page, "#map-heads button")
    assert again.locator("#explorer-told").inner_text() == told.inner_text()


def test_one_colour_scale_for_all_examples(opened: Callable[..., Any]) -> None:
    page = opened()
    legend = page.locator("#map-legend .ticks").inner_text()
    page.select_option("#pick-noun", "dog")
    page.locator("#pick-step").fill("0")
    assert page.locator("#map-legend .ticks").inner_text() == legend
    for value, colour in zip(values(page, "#map-tokens button"), colours_of(page), strict=True):
        red, _, blue = colour
        assert (blue > red) == (value < 0) or abs(value) < 0.05


def colours_of(page: Any) -> list[list[int]]:
    found = page.locator("#map-tokens button").evaluate_all(
        "(all) => all.map((e) => getComputedStyle(e).backgroundColor)"
    )
    return [[int(x) for x in re.findall(r"\d+", colour)[:3]] for colour in found]


def test_by_keyboard_alone(opened: Callable[..., Any]) -> None:
    page = opened()
    page.locator("#pick-step").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#step-shown").inner_text() == "step 200"
    assert page.locator("#pick-step").get_attribute("aria-valuetext") == "step 200"
    page.locator("#pick-noun").focus()
    page.keyboard.press("ArrowDown")
    assert "“dog”" in page.locator("#explorer-told").inner_text()
    page.locator("#map-tokens button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("k")
    assert "from “picks”" in page.locator("#heads-note").inner_text()
    page.keyboard.press("ArrowRight")  # the focus is where it was, although the tokens were drawn again
    assert page.evaluate("document.activeElement.textContent").strip() == "dog"
    # Every scrolling region can be focused, and every control has a name.
    wrong = {
        ".scroll": "e.tabIndex !== 0 || !e.ariaLabel",
        "select, input": "!e.labels.length",
        ".picture": "e.tabIndex !== 0 || !e.ariaLabel",
    }
    for which, unlike in wrong.items():
        found = page.evaluate(f"[...document.querySelectorAll('{which}')].map(e => {unlike})")
        assert found
        assert not any(found)


def test_figures_say_the_values_of_their_tables(opened: Callable[..., Any], made: Made) -> None:
    study = made("another", seeds=1)
    page = opened(path=sg.report(study))
    gain = read_table(study, "gain").groupby("step")["gain"].mean()
    figure = page.locator("#figure-gain .picture")
    figure.focus()
    for step, value in gain.items():
        page.keyboard.press("ArrowRight")
        said = page.locator("[aria-live]").inner_text()
        assert said.startswith(f"gpt2-4l; step {step}; grounding gain G (nats) ")
        assert float(said.split(") ")[1].split(" [")[0]) == pytest.approx(value, abs=5e-4)
    assert (figure.get_attribute("role"), figure.get_attribute("aria-describedby")) == ("application", "walk-hint")
    page.keyboard.press("Escape")
    assert not page.locator(".tip").is_visible()
    # By pointer: a cell of the heat map, whose place is known from its steps.
    saliency = read_table(study, "saliency")
    of_noun = saliency[(saliency["region"] == "env") & (saliency["layer"] == 1) & (saliency["step"] == 200)]
    svg = page.locator("#figure-saliency svg").first
    svg.scroll_into_view_if_needed()
    cells = json.loads(svg.get_attribute("data-series"))[0]["points"]
    (cell,) = (cell for cell in cells if cell[4] == "step 200, layer 1")
    box, inside = svg.bounding_box(), svg.evaluate("(e) => e.viewBox.baseVal.width")
    scale = box["width"] / inside
    page.mouse.move(box["x"] + (cell[0] + cell[5] / 2) * scale, box["y"] + (cell[1] + cell[6] / 2) * scale)
    said = page.locator(".tip").inner_text()
    assert said.startswith("gpt2-4l; step 200, layer 1; saliency (nats) ")
    assert float(said.split(") ")[1]) == pytest.approx(of_noun["value"].item(), rel=1e-3)
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    assert not page.locator(".tip").is_visible()
    assert page.complaints == []


def test_tables_sort_numbers_and_filter(opened: Callable[..., Any], made: Made) -> None:
    study = made("another", models=("gpt2-4l", "lstm-4l"), seeds=1)
    gain = read_table(study, "gain")
    page = opened(path=sg.report(study))
    folded = page.locator("#table-training details")
    assert folded.count() == 0  # eight rows
    training = page.locator("#table-training table")
    header = training.locator("th").filter(has_text="gain")
    for press, order in (("ascending", 1), ("descending", -1)):
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == press
        shown = training.locator("tbody tr td:nth-child(5)").all_inner_texts()  # with intervals
        means = sorted(gain.groupby(["model", "step"])["gain"].mean().tolist(), reverse=order < 0)
        assert [float(text.split(" [")[0]) for text in shown] == pytest.approx(means, abs=0.006)
    lens = page.locator("#table-lens")
    rows = 2 * 2 * 4 * 4
    assert lens.locator("summary").inner_text() == f"Table lens: {rows} rows"
    assert not lens.locator("table").is_visible()
    lens.locator("summary").click()
    lens.locator("input").fill("lstm-4l")
    assert lens.locator("tbody tr:visible").count() == rows // 2
    assert lens.locator("output").inner_text() == f"{rows // 2} of {rows}"
    lens.locator("input").fill(" 400  logit LSTM-4l ")  # in another order than the columns
    shown = lens.locator("tbody tr:visible").all_inner_texts()
    assert [text.split("\t")[:3] for text in shown] == [["lstm-4l", "logit", "400"]] * 4
    lens.locator("input").fill("logit tuned")
    assert lens.locator("tbody tr:visible").count() == 0


def test_what_sorts_as_a_number(opened: Callable[..., Any], made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dashes are last, "never" is the largest, and stars, signs and thousands do not matter."""
    values = ["1,200", "–", "< 0.001", "0.05", "-3.00", "5.33***", "+2.00 (+0.10)", "never", "[4.00, 9.00]"]
    section = import_module("symground.reports.sections.causal")
    monkeypatch.setattr(section, "STUDY_INTERVENTIONS", pd.DataFrame({"x": values}))
    page = opened(path=sg.report(made("another", steps=(0, 400))))
    button, cells = page.locator("#table-study th button"), page.locator("#table-study td")
    button.click()
    expected = ["-3.00", "< 0.001", "0.05", "+2.00 (+0.10)", "[4.00, 9.00]", "5.33***", "1,200", "never", "–"]
    assert cells.all_inner_texts() == expected
    button.click()
    assert cells.all_inner_texts() == [*expected[-2::-1], "–"]


def test_without_scripts_all_is_there_but_the_explorer(opened: Callable[..., Any]) -> None:
    page = opened(java_script_enabled=False)
    assert "need JavaScript" in page.locator("noscript").inner_text()
    assert not page.locator("#explorer").is_visible()
    assert page.locator('a[href="#explorer"]:visible').count() == 0
    assert page.locator('nav a[href="#behaviour"]').is_visible()
    assert page.locator("#figure-gain svg").is_visible()
    page.locator("#table-lens summary").click()
    assert page.locator("#table-lens table").is_visible()


PIECES = ["the", " ", "ch", "ild", " booking", " a", " bo", "ok", ".", " look", " at", " the", "\n"]


def elsewhere(study: Path, pieces: list[str]) -> Path:
    """The study as one of a model that was trained elsewhere, whose tokens are pieces of plain text."""
    config = json.loads((study / "config.json").read_text()) | {"pretrained": "org/tiny"}
    (study / "config.json").write_text(json.dumps(config))
    maps = read_table(study, "maps")
    size = len(pieces)
    rng = np.random.default_rng(1)
    maps["tokens"] = [pieces] * len(maps)
    maps["saliency"] = [np.tril(rng.random((size, size))).astype(np.float16).ravel() for _ in range(len(maps))]
    maps["rows"] = [rng.normal(size=2 * size).astype(np.float16) for _ in range(len(maps))]
    maps[maps["noun"] == "book"].assign(target=" book").to_parquet(study / "results" / "maps.parquet")
    return study


def test_pieces_of_plain_text_keep_their_own_spaces(opened: Callable[..., Any], made: Made) -> None:
    page = opened(path=sg.report(elsewhere(made("another", seeds=1, steps=(0,)), PIECES)))
    told = page.locator("#explorer-told").inner_text()
    assert told.startswith("“the child booking a book. look at the …” The surprisal of “book” is ")
    assert page.locator("#pick-context option").all_inner_texts()[0] == "0: the child booking a book. look at the …"
    assert page.locator("#map-tokens button").all_text_contents() == [*PIECES[:-1], "↵"]
    assert "from “ok” in the scene" in page.locator("#heads-note").inner_text()  # the last piece of the noun
    texts = [told, page.locator("#heads-note").inner_text()]
    labels = page.locator("[aria-label]").evaluate_all("(all) => all.map((e) => e.getAttribute('aria-label'))")
    assert [text for text in [*texts, *labels] if re.search(r"“\s|\s”", text)] == []
    assert page.complaints == []


def test_the_lines_of_the_example_begin_in_one_place(opened: Callable[..., Any]) -> None:
    for width in (390, 1000):
        page = opened(width)
        for of in page.locator(".asked p").all():
            name, words = (of.locator(which).first.bounding_box() for which in ("b", "> span"))
            pieces = of.locator("> span").evaluate("(e) => [...e.getClientRects(), ...[...e.children].flatMap((c) => "
                                                   "[...c.getClientRects()])].map((r) => r.left)")  # fmt: skip
            if width < 640:  # above the words
                assert name["y"] + name["height"] <= words["y"] + 1
            else:
                assert min(pieces) >= name["x"] + name["width"]
            assert min(pieces) == pytest.approx(words["x"], abs=1)


def test_a_wide_table_shows_that_there_is_more(opened: Callable[..., Any]) -> None:
    """The right edge is darker than the middle until the table is scrolled to its end."""
    page = opened(390)
    box = page.locator("#table-final .scroll")
    box.scroll_into_view_if_needed()
    assert box.evaluate("(e) => e.scrollWidth > e.clientWidth")
    assert edge(page, box) < -20
    box.evaluate("(e) => { e.scrollLeft = e.scrollWidth; }")
    assert abs(edge(page, box)) < 3


def edge(page: Any, box: Any) -> float:
    """How much brighter the right edge of a box is than a place further inside, along a row's lower border."""
    area = box.bounding_box()
    picture = image_of(page.screenshot(clip=area))
    last = picture.shape[1] - 3
    return float(np.median(picture[-12:-4, last - 2 : last]) - np.median(picture[-12:-4, last - 60 : last - 50]))


def image_of(png: bytes) -> np.ndarray:
    """[height, width] brightness."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), float)


def test_a_demonstration_prints_on_ten_pages(opened: Callable[..., Any], made: Made) -> None:
    steps = (0, 25, 50, 75, *range(100, 801, 50))
    study = made(
        "demo", nouns=list(cdi_categories())[:40], models=("gpt2-4l", "lstm-4l"), seeds=1, steps=steps, contexts=3
    )
    file = sg.report(study)
    assert file.stat().st_size < 2_000_000
    printed = opened(path=file).pdf(format="A4", prefer_css_page_size=True)
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 10


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
    for button in page.locator("#map-tokens button").all()[:2]:
        button.hover()
    assert evil in page.locator("#explorer-told").inner_text()
    assert page.locator("img").count() == 0
    assert page.complaints == []


def test_comparison_and_no_maps(opened: Callable[..., Any], made: Made, tmp_path: Path) -> None:
    page = opened(390, path=sg.report(made("a"), made("b"), out=tmp_path / "c.html"))
    assert page.complaints == []
    assert page.locator("#explorer").count() == 0
