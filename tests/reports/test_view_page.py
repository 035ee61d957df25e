"""A view in a real browser: by pointer and keyboard, in two widths, light and dark, with words that are HTML."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import symground as sg
from symground.data import read_questions
from tests.reports.browser import browser, check_page, open_page, violations
from tests.reports.test_views import ids, model, span

__all__ = ["browser", "open_page"]
TEXT = ["<script>alert(1)</script>", " the", " ball", "\n", " &amp;", "'\"", " is", " a", "</script>", " b", " c", " d"]


@pytest.fixture(scope="module")
def traced() -> Any:
    return sg.trace(model(), ids(), span=span(), per_token=True, rows=True)


@pytest.fixture(scope="module")
def page_file(traced: Any, tmp_path_factory: Any) -> Path:
    return sg.view(traced, TEXT, title="a <i>title</i>").save(tmp_path_factory.mktemp("view") / "view.html")


def shown(page: Any, token: int) -> float:
    """The value that a token's label says."""
    label = page.locator(".text").first.locator("button").nth(token).get_attribute("aria-label")
    return float(label.rsplit(": ", 1)[1].removesuffix(" nats"))


def address(page: Any) -> str:
    """The page's own, since the browser's driver hears of changes later."""
    found: str = page.evaluate("location.hash")
    return found


def row(traced: Any, target: int, layer: int | None = None, head: int | None = None) -> np.ndarray:
    rows = traced.rows[0, target].values
    found: np.ndarray = rows.sum((0, 1)) if layer is None else rows[layer].sum(0) if head is None else rows[layer, head]
    return found


def agrees(page: Any, expected: np.ndarray) -> None:
    found = [shown(page, i) for i in range(len(expected))]
    np.testing.assert_allclose(found, expected, atol=np.abs(expected).max() / 200 + 6e-4)


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_fits_and_is_accessible(
    open_page: Callable[..., Any], page_file: Path, traced: Any, width: int, scheme: str, tmp_path: Path
) -> None:
    for file in (
        page_file,
        sg.view(traced, TEXT, beside=traced, names=("one", "two")).save(tmp_path / "beside.html"),
        sg.view(sg.attention(model(), ids(), rows="all"), TEXT).save(tmp_path / "attention.html"),
    ):
        for address in ("", "#target=1&layer=2&head=3&token=2"):
            page = open_page(file, width, address, color_scheme=scheme)
            page.wait_for_selector("body[data-ready]")
            check_page(page, width)


def test_pointer_keyboard_and_address(open_page: Callable[..., Any], page_file: Path, traced: Any) -> None:
    page = open_page(page_file)
    page.wait_for_selector("body[data-ready]")
    agrees(page, row(traced, 0))
    tokens, heads, targets = (page.locator(f"{place} button") for place in (".text", ".heads", "#targets"))
    assert targets.count() == 4
    tokens.nth(10).click()  # the third of the span
    agrees(page, row(traced, 2))
    assert "target=2" in address(page)
    heads.nth(1 * 4 + 2).click()
    agrees(page, row(traced, 2, 1, 2))
    assert "layer=1&head=2" in address(page)
    assert page.locator("#pick-layer").input_value() == "1"
    page.select_option("#pick-head", "-1")
    agrees(page, row(traced, 2, 1))
    page.select_option("#pick-layer", "-1")
    agrees(page, row(traced, 2))
    tokens.nth(2).click()
    assert "token=2" in address(page)
    labels = [heads.nth(i).get_attribute("aria-label") for i in range(12)]
    values = [float(re.search(r": ([+-]?[\d.]+) nats", label or "").group(1)) for label in labels]  # type: ignore[union-attr]
    expected = traced.rows[0, 2, :, :, 2].values.ravel()
    np.testing.assert_allclose(values, expected, atol=np.abs(traced.rows[0, 2]).max().item() / 250 + 6e-4)
    page.click("#no-token")
    assert "token" not in address(page)
    targets.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    agrees(page, row(traced, 1))
    tokens.first.focus()
    for key in ("ArrowRight", "ArrowRight", "k"):
        page.keyboard.press(key)
    assert "token=2" in address(page)
    heads.first.focus()
    for key in ("ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    page.keyboard.press("Space")
    assert "layer=1&head=1" in address(page)
    again = open_page(page_file, address=address(page))
    again.wait_for_selector("body[data-ready]")
    agrees(again, row(traced, 1, 1, 1))
    assert again.complaints == page.complaints == []


def test_words_are_never_run(open_page: Callable[..., Any], page_file: Path) -> None:
    page = open_page(page_file)
    page.wait_for_selector("body[data-ready]")
    assert page.locator(".text script, .text i, #told script").count() == 0
    assert page.locator("h1").inner_text() == "a <i>title</i>"
    words = [page.locator(".text button").nth(i).inner_text() for i in range(12)]
    assert words[0] == "<script>alert(1)</script>"
    assert words[3] == "↵"
    assert words[4].strip() == "&amp;"


def test_colours_say_the_sign_and_the_size(open_page: Callable[..., Any], page_file: Path, traced: Any) -> None:
    page = open_page(page_file, color_scheme="light")
    page.wait_for_selector("body[data-ready]")
    expected = row(traced, 0)
    largest = np.abs([row(traced, t) for t in range(4)]).max()
    for i, value in enumerate(expected):
        colour = page.locator(".text button").nth(i).evaluate("e => getComputedStyle(e).backgroundColor")
        red, _, blue = (int(x) for x in re.findall(r"\d+", colour)[:3])
        if abs(value) > 0.02 * largest:
            assert (blue > red) == (value < 0)
    legend = page.locator("#legend .ticks span").all_inner_texts()
    assert float(legend[-1]) == pytest.approx(largest, rel=0.02)
    page.locator("#targets button").nth(3).click()
    assert page.locator("#legend .ticks span").all_inner_texts() == legend  # one scale for all targets
    of_heads = page.locator("#heads-legend .ticks span")
    assert of_heads.first.inner_text() == "0.000"
    totals = np.sort(np.abs(traced.rows[0].values).sum(-1).ravel())
    assert float(of_heads.last.inner_text().strip("≥ +")) == pytest.approx(totals[-1], rel=0.02)
    assert page.locator(".matrix .labels div").all_inner_texts() == [piece.strip() for piece in TEXT[-4:]]


def test_a_matrix_of_all_targets(open_page: Callable[..., Any], page_file: Path, traced: Any) -> None:
    page = open_page(page_file)
    page.wait_for_selector("body[data-ready]")
    canvas = page.locator("#matrix canvas")
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] * 2.5 / 12, "y": box["height"] * 1.5 / 4})
    said = float(canvas.get_attribute("title").rsplit(": ", 1)[1].removesuffix(" nats"))
    assert said == pytest.approx(row(traced, 1)[2], abs=float(np.abs(row(traced, 1)).max()) / 200 + 6e-4)
    canvas.click(position={"x": box["width"] * 2.5 / 12, "y": box["height"] * 1.5 / 4})
    assert "target=1" in address(page)
    assert "token=2" in address(page)


def test_a_long_text_answers_at_once(open_page: Callable[..., Any], tmp_path: Path) -> None:
    """2,048 tokens × 32 layers × 32 heads: a click is answered, and the page does not overflow."""
    ours, given = model(2, 4), torch.randint(5, 300, (1, 2048))
    traced = sg.trace(ours, given, given[:, 0], rows=True, saliency=False)
    wide = traced.isel(layer=[0, 1] * 16, head=[0, 1, 2, 3] * 8).assign_coords(layer=range(32))
    page = open_page(sg.view(wide).save(tmp_path / "long.html"), 390)
    page.wait_for_selector("body[data-ready]")
    assert page.locator(".text button").count() == 2048
    assert page.locator(".heads button").count() == 1024
    page.locator(".heads button").nth(500).click()
    assert "layer=15&head=20" in address(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_notebook_shows_it_in_a_frame_of_its_own(open_page: Callable[..., Any], traced: Any, tmp_path: Path) -> None:
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><title>n</title>{sg.view(traced, TEXT)._repr_html_()}", encoding="utf-8")
    page = open_page(notebook)
    frame = page.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for()
    frame.locator(".heads button").nth(5).click()
    assert "layer 1, head 1" in frame.locator("#told").inner_text()
    assert page.complaints == []


def test_placeholders_are_one_mark(open_page: Callable[..., Any], tmp_path: Path) -> None:
    """It has the sum of their values, on the text and for each head."""
    traced = sg.trace(model(), ids(), groups={"image": span(12, 9)}, span=span(12, 2), per_token=True, rows=True)
    page = open_page(sg.view(traced, TEXT).save(tmp_path / "image.html"))
    page.wait_for_selector("body[data-ready]")
    buttons = page.locator(".text button")
    assert buttons.count() == 4
    assert buttons.last.inner_text().strip() == "[image]×9"
    expected = row(traced, 0)
    assert shown(page, 3) == pytest.approx(expected[3:].sum(), abs=float(np.abs(expected).max()) / 20)
    page.locator(".text button").last.click(modifiers=["Shift"])
    of_heads = [page.locator(".heads button").nth(i).get_attribute("aria-label").split(": ")[1] for i in range(12)]
    found = [float(text.split(" nats")[0]) for text in of_heads]
    sums = traced.rows[0, 0].values[..., 3:].sum(-1).ravel()
    np.testing.assert_allclose(found, sums, atol=np.abs(sums).max() / 50 + 1e-3)
    assert page.complaints == []


def test_a_picture_has_its_patches(open_page: Callable[..., Any], llava_folder: Path, tmp_path: Path) -> None:
    llava, processor = sg.load(llava_folder / "model"), sg.load_processor(llava_folder / "model")
    asked = sg.image_questions(processor, read_questions(llava_folder / "questions.json")[:3])
    traced = sg.trace(llava, asked, rows=True, saliency=False)
    view = sg.view(traced, asked.processor.tokenizer, example=1, questions=asked)
    page = open_page(view.save(tmp_path / "seen.html"))
    page.wait_for_selector("body[data-ready]")
    marks = [text for text in page.locator(".text button").all_inner_texts() if "×" in text]
    assert sum(int(mark.split("×")[1]) for mark in marks) <= len(asked.prompts[1].spans["image"])
    assert page.locator(".text button").count() < len(asked.matched().input_ids[1]) - len(marks)
    canvas, image = page.locator("#picture canvas"), asked.picture(1)
    box = canvas.bounding_box()
    assert box["width"] / box["height"] == pytest.approx(image.width / image.height, rel=0.05)
    (grid, (left, top, right, bottom)) = asked.prompts[1].maps[0]
    at = (left + (right - left) * 0.5 / grid.shape[1], top + (bottom - top) * 0.5 / grid.shape[0])
    canvas.hover(position={"x": box["width"] * max(at[0], 0.01), "y": box["height"] * max(at[1], 0.01)})
    said = canvas.get_attribute("title")
    place = asked.prompts[1].spans["image"][int(grid[0, 0])]
    assert said.startswith(f"patch {place}: ")
    expected = traced.rows[1].sum(("layer", "head")).values
    assert float(said.split(": ")[1].removesuffix(" nats")) == pytest.approx(
        expected[place], abs=float(np.abs(expected).max()) / 200 + 6e-4
    )
    assert violations(page) == []
    assert page.complaints == []
