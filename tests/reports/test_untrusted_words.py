"""Names from a corpus, a folder or a file are never run as code: in no spreadsheet, no page and no figure."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import symground as sg
from symground.analysis.results import read_table
from symground.data import env, lan
from symground.reports.comparisons.architectures import gains_over_gaps
from symground.reports.comparisons.dials import curves
from symground.reports.figures import CountFormatter, figure_of, svg_of, write_figures
from symground.reports.formats import csv_of
from symground.reports.pages.corpus import _scatter, corpus_page

Made = Callable[..., Path]
FORMULAS = (
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1+1",
    "－x",
    "-",
    "=cmd|' /C calc'!A0",
    "-2-3",
)
NO_FORMULA = "$a_{$"  # a formula that matplotlib cannot read


def cells(frame: pd.DataFrame) -> list[list[str]]:
    return list(csv.reader(io.StringIO(csv_of(frame), newline="")))


@given(st.lists(st.one_of(st.sampled_from(FORMULAS), st.text(max_size=4)), min_size=1, max_size=5))
def test_no_cell_begins_a_formula(words: list[str]) -> None:
    table = cells(pd.DataFrame({"noun": words, words[0]: 1}))
    for text in (*(row[0] for row in table[1:]), table[0][1]):
        number = re.fullmatch(r"[+-]?\d*\.?\d*(e[+-]?\d+)?", text, re.I)
        assert not text or text[0] not in "=+-@\t\r\n＝＋－＠" or number
    # Nothing else is changed, and the apostrophe can be removed again.
    assert [row[0].removeprefix("'") for row in table[1:]] == [word.removeprefix("'") for word in words]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_numbers_stay_numbers(values: list[float]) -> None:
    frame = pd.DataFrame({"x": values, "text": [repr(-abs(value)) for value in values]})
    assert [float(row[0]) for row in cells(frame)[1:]] == values
    assert [row[1] for row in cells(frame)[1:]] == frame["text"].tolist()


def test_tables_of_the_page_are_downloaded_so(made: Made) -> None:
    frame = pd.DataFrame(
        {"noun": pd.Series(["=1", "ball"], dtype="category"), "gain": [-1.5, np.nan], "on": [True, False]}
    )
    assert cells(frame) == [["noun", "gain", "on"], ["'=1", "-1.5", "True"], ["ball", "", "False"]]


def corpus_of(folder: Path, words: list[str]) -> str:
    nouns = {word: (env(word), lan(word)) for word in words}
    # The points are far apart, since of overlapping names only one is shown.
    of_corpus = {form(w): n * 2**i for i, w in enumerate(words) for form, n in ((env, 10), (lan, 3000))}
    counts = dict.fromkeys(words, of_corpus)
    counted = ("main_tiers", "utterances", "silent", "other_speakers", "in_left_out_files", "in_set_aside_files")
    chat = dict.fromkeys(
        (*counted, "files", "files_kept", "files_left_out", "files_set_aside", "files_not_read", "latin_1"), 1
    )
    chat |= {"corpora": {word: {"files": 1, "files_kept": 1, "files_set_aside": 0, "utterances": 5} for word in words}}
    statistics = {
        "tokens": 100,
        "env_tokens": 30,
        "lan_tokens": 60,
        "unknown_tokens": 2,
        "vocabulary": 9,
        "documents": 2,
        "chat": chat,
    }
    return corpus_page(folder, statistics, counts, nouns, 5).read_text(encoding="utf-8")


def test_the_corpus_page_has_the_policy_of_the_report(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("symground.reports.sections.parts.svg_of", lambda *_: "<svg></svg>")
    evil = "<script>alert(1)</script>"
    page, report = corpus_of(tmp_path, ["ball", NO_FORMULA, evil]), sg.report(made(steps=(0, 400))).read_text()
    policies = [re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text) for text in (page, report)]
    assert [len(found) for found in policies] == [1, 1]
    of_corpus, of_report = ([part.strip() for part in found[0].split(";")] for found in policies)
    for parts, text in ((of_corpus, page), (of_report, report)):
        (allowed,) = (part for part in parts if part.startswith("script-src"))
        (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)  # no other script runs
        assert allowed == f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    assert of_corpus[0] == "default-src 'none'"
    assert [part for part in of_report if "sha256" not in part] == [part for part in of_corpus if "sha256" not in part]
    # The policy comes before everything that it applies to.
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert page.count("<script") == 1
    assert "alert(1)" not in page.replace("&lt;script&gt;alert(1)", "").replace("\\u003cscript\\u003ealert(1)", "")


def test_words_are_no_formulas_in_the_corpus_page(tmp_path: Path) -> None:
    page = corpus_of(tmp_path, ["ball", NO_FORMULA, "costs $5 or $6"])
    svgs = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(svgs) == 2
    for svg in svgs:
        assert NO_FORMULA in svg  # as it stands
        assert "costs $5 or $6" in svg
        assert "mathdefault" not in svg
    assert re.search(r">10</text>|>100</text>", svgs[0])  # the axes are counts, in digits
    assert ">1,000</text>" in svgs[1] or ">3,000</text>" in svgs[1] or ">10,000</text>" in svgs[1]


def test_names_of_the_corpus_page_do_not_lie_over_each_other(tmp_path: Path) -> None:
    """Of names at one place the first is shown, and the table has all of them."""
    rows = [("ball", 10, 3000), ("book", 10, 3000), ("box", 800, 90), ("bed", 801, 90)]
    drawn = _scatter(pd.DataFrame(rows, columns=["noun", "as ENV", "as LAN"]), 5)
    assert [name for name, *_ in rows if f">{name}</text>" in drawn] == ["ball", "box"]


def test_counts_on_an_axis_are_digits() -> None:
    figure = figure_of(4, 3)
    axes = figure.subplots()
    axes.loglog([1, 10, 20_000], [1, 2, 3])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(CountFormatter())
        axis.set_minor_formatter(CountFormatter())
    svg = svg_of(figure)
    assert ">10,000</text>" in svg
    assert ">2</text>" in svg  # of less than a decade the ticks between are named


@pytest.mark.parametrize("write", ["svg", "files"])
def test_words_of_every_kind_of_text_are_no_formulas(tmp_path: Path, write: str) -> None:
    figure = figure_of(4, 3)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label=NO_FORMULA)
    axes.set(title=NO_FORMULA, xlabel=NO_FORMULA, ylabel=NO_FORMULA)
    axes.set_xticks([0, 1], [NO_FORMULA, "b"])
    axes.annotate(NO_FORMULA, (0.5, 0.5))
    axes.legend(title=NO_FORMULA)
    if write == "svg":
        assert svg_of(figure).count(NO_FORMULA) == 7
    else:
        assert [path.name for path in write_figures([("x", figure)], tmp_path / "f")] == ["x.png", "x.pdf"]


def test_names_are_no_formulas_in_any_figure_of_a_page(made: Made, tmp_path: Path) -> None:
    studies = [made(f"{name}{NO_FORMULA}", models=(NO_FORMULA,), steps=(0, 400)) for name in "ab"]
    page = sg.report(studies[0]).read_text(encoding="utf-8")
    svgs = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(svgs) >= 12
    assert sum(NO_FORMULA in svg for svg in svgs) >= 11  # all that name the model
    assert NO_FORMULA in re.findall(r"<svg.*?</svg>", sg.report(*studies, out=tmp_path / "c.html").read_text(), re.S)[0]
    row = {"model": NO_FORMULA, "tokens": 1, "gain": 1.0, "seed_gains": [1.0], "step": 1, "gap": 0, "kind": "grounding"}
    assert NO_FORMULA in gains_over_gaps(pd.DataFrame([row]))
    assert NO_FORMULA in curves(pd.DataFrame([row | {"gap": NO_FORMULA}]), "gap")
    assert len(read_table(studies[0], "gain"))
