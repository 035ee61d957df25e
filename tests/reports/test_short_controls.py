"""If too few controls could be drawn, no place compares with them: page, terminal, paper.md, dials and README."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import symground as sg
from symground.analysis.causal.controls import enough
from symground.analysis.results import read_table
from symground.recipes import heads as recipe_of_heads
from symground.recipes.study import summarise
from symground.reports.comparisons.dials import silenced_heads, silenced_markdown
from symground.reports.comparisons.paper import markdown, tables
from symground.reports.formats import FEW
from symground.reports.sections import parts
from symground.reports.sections.causal import grounds_or_matters
from symground.reports.sections.monitor import steering_figure
from symground.reports.sections.parts import StudyResults

sys.path.insert(0, str(Path(sg.__file__).resolve().parent.parent))

from tools import page_tables

Made = Callable[..., Path]
#: The control's value and deviation in these results. No other number is printed in the same way.
CONTROL, DEVIATION = 7.77, 0.88
SHORT = ((18, False), (0, False), (19, True), (180, True))


def results_of(made: Made, short: int) -> Path:
    """A study whose controls are `CONTROL`, with too few heads to draw from in ``short`` of 180 examples."""
    study = made(steps=(0, 400))
    for name in ("interventions", "steering"):
        table = read_table(study, name).assign(short=short, examples=180, control_sd=DEVIATION)
        for column in table:
            if column == "control" or column.endswith("_control"):
                table[column] = CONTROL
        table.to_parquet(study / "results" / f"{name}.parquet")
    return study


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures: these tests do not read them, and they are slow."""
    monkeypatch.setattr(parts, "svg_of", lambda *_: "<svg></svg>")


def without_downloads(page: str) -> str:
    return re.sub(r'href="data:text/csv[^"]*"', "", page)


@pytest.mark.parametrize(("short", "withheld"), SHORT)
def test_in_the_page(made: Made, tmp_path: Path, short: int, withheld: bool) -> None:
    study = results_of(made, short)
    page = without_downloads(sg.report(study).read_text(encoding="utf-8"))
    beside = without_downloads(
        sg.report(study, made("b", steps=(0, 400)), out=tmp_path / "c.html").read_text(encoding="utf-8")
    )
    of_table = f"<td>{CONTROL:.2f} ± {DEVIATION:.2f}</td>"
    for text in (page, beside):
        assert (of_table in text) != withheld
        assert (f"<td>{FEW}</td>" in text) == withheld
    assert (f"as many random heads from all layers to {CONTROL:.2f} ± {DEVIATION:.2f}." in page) != withheld
    assert (f"in {short} of 180 examples too few other heads are left" in page) == withheld
    assert (f"<td>{CONTROL:.3f} ± {DEVIATION:.3f}</td>" in page) != withheld  # of steering
    original = read_table(study, "interventions")["original"].iloc[0]
    change = f"{CONTROL - original:+.2f}"
    assert (f"({change})</td>" in page) != withheld  # of "grounds"
    grounds = grounds_or_matters(read_table(study, "interventions"))
    assert grounds["matched, random heads"].isna().all() == withheld
    # The figure draws controls if there were enough.
    (axes,) = steering_figure(read_table(study, "steering")).axes
    (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert np.isnan(np.asarray(line.get_ydata(), float)).all() == withheld


@pytest.mark.parametrize(("short", "withheld"), SHORT)
def test_on_the_terminal(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], short: int, withheld: bool
) -> None:
    study = results_of(made, short)
    summarise(study)
    told = capsys.readouterr().err
    assert (f"random heads {CONTROL:.2f} ± {DEVIATION:.2f}" in told) != withheld
    assert (f"random heads {FEW}" in told) == withheld
    for name in ("interventions", "steering"):
        read_table(study, name).to_parquet(tmp_path / f"{name}.parquet")
    told = recipe_of_heads.summary(tmp_path)
    assert (f"{CONTROL:.3f}" in told) != withheld
    assert (f"{DEVIATION:.3f}" in told) != withheld
    assert str(short) in told


def papers(study: Path, layers: int = 3) -> str:
    found = tables(StudyResults.read(study), ["gpt2-4l"], {"gpt2-4l": layers})
    corpus = {"tokens": 10, "env_tokens": 5, "vocabulary": 3}
    return markdown(found, {
        "recipe": "x", "corpus": corpus, "nouns": 8, "contexts": 1, "tokens_per_step": 8, "steps": 30,
        "summary": ["a line"], "sizes": {"gpt2-4l": 7},
    })  # fmt: skip


@pytest.mark.parametrize(("short", "withheld"), SHORT)
def test_in_the_paper(made: Made, short: int, withheld: bool) -> None:
    study = results_of(made, short)
    table = read_table(study, "interventions")
    # The largest share over runs decides, although the other seed has enough.
    table.loc[table["seed"] == 1, "short"] = 0
    table.to_parquet(study / "results" / "interventions.parquet")
    text = papers(study)
    assert (f"| {CONTROL:.2f} ± {DEVIATION:.2f} |" in text) != withheld
    assert (f"| {FEW} |" in text) == withheld
    change = CONTROL - table["original"].mean()
    assert (f"others {change:+.2f}" in text) != withheld
    assert text.count("no control to judge it by") == withheld


@pytest.mark.parametrize(("short", "withheld"), SHORT)
def test_of_dials_and_in_the_readme(made: Made, monkeypatch: pytest.MonkeyPatch, short: int, withheld: bool) -> None:
    table = read_table(results_of(made, short), "interventions").assign(gap=4)
    table.loc[table["seed"] == 1, "short"] = 0
    text = silenced_markdown(silenced_heads(table, "gap"), "gap")
    assert (f"| {CONTROL:.2f} |" in text) != withheld
    assert (f"| {FEW} |" in text) == withheld
    row = {"model": "gpt2-12l", "denominator": "row", "step": 4, "p": 0.5, "control": CONTROL, "control_sd": DEVIATION,
           "short": short / 180,
           **dict.fromkeys(("heads_per_example", "mean_layer", "intervened", "original"), 1.0)}  # fmt: skip
    monkeypatch.setattr(page_tables, "_read", lambda name: {"curves": [], "interventions": [row]})
    assert (f"| {CONTROL:.2f} ± {DEVIATION:.2f} |" in page_tables.study()) != withheld
    found = json.loads((page_tables.RESULTS / "childes-report.json").read_text())
    for of_kind in found["interventions"]:
        of_kind |= {"control": CONTROL, "control_sd": DEVIATION, "short": short, "examples": 180}
    monkeypatch.setattr(page_tables, "_read", lambda name: found)
    assert (f"{CONTROL:.2f} ± {DEVIATION:.2f}" in page_tables.childes()) != withheld


def test_a_control_that_could_not_be_drawn_is_a_dash_everywhere(made: Made) -> None:
    study = results_of(made, 0)
    table = read_table(study, "interventions")
    drawn = [name for name in table if name.startswith("control") or name.endswith("_control")]
    table.assign(**dict.fromkeys(drawn, np.nan)).to_parquet(study / "results" / "interventions.parquet")
    page, paper = without_downloads(sg.report(study).read_text(encoding="utf-8")), papers(study)
    assert "nan" not in page.split('id="causal"')[1].split("</section>")[0]
    assert "nan" not in paper
    assert "as many random heads from all layers to –." in page
    assert "no control to judge it by" in paper


def test_without_heads_there_is_nothing_to_judge(made: Made) -> None:
    study = made()
    table = read_table(study, "interventions").assign(heads_per_example=0.0, mean_layer=np.nan, p=np.nan)
    table.to_parquet(study / "results" / "interventions.parquet")
    text = papers(study)
    assert "nan" not in text
    assert text.count("no heads to judge it by") == 2


def test_enough_by_hand() -> None:
    assert enough(18, 180)
    assert not enough(19, 180)
    assert enough(0.1)
    assert not enough(0.11)
    assert enough(None, 180)  # not counted
    assert enough(np.nan)
    assert pd.Series([0, 1]).map(lambda short: enough(short, 9)).tolist() == [True, False]
