"""What a row of silenced heads is, wherever it is told: findings, tables and the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import symground as sg
from symground.analysis.results import read_table
from symground.recipes.study import summarise
from symground.reports.pages.study import summary
from symground.reports.sections import parts
from symground.reports.sections.causal import grounds_or_matters, grounds_shown, intervention_table
from symground.reports.sections.silencing import said_of_rows

Made = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures: these tests do not read them, and they are slow."""
    monkeypatch.setattr(parts, "svg_of", lambda *_: "<svg></svg>")


def silenced(made: Made, *rows: dict[str, Any]) -> Path:
    """A study of one seed whose table "interventions" has a row for each of the changes."""
    study = made(seeds=1, steps=(0, 400))
    (usual,) = read_table(study, "interventions").to_dict("records")
    pd.DataFrame([usual | row for row in rows]).to_parquet(study / "results" / "interventions.parquet")
    return study


def said(study: Path) -> str:
    (text,) = (text for text in summary(study) if "seed 0:" in text)
    return text.removeprefix("gpt2-4l, seed 0: ")


END = "moves the matched surprisal from 2.00 to 5.00 nats, and silencing as many"


@pytest.mark.parametrize(
    ("row", "heads", "others"),
    [
        ({}, "aggregate heads found in each example itself (at all positions, by zeros)", "from all layers"),
        ({"selection": "held-out"}, "aggregate heads found on the other half of the contexts (at all positions, by "
         "zeros)", "from all layers"),
        ({"positions": "own"}, "aggregate heads found in each example itself (at their own positions, by zeros)",
         "from all layers"),
        ({"mode": "mean"}, "aggregate heads found in each example itself (at all positions, by their means)",
         "from all layers"),
        ({"mode": "resample"}, "aggregate heads found in each example itself (at all positions, by resampled "
         "outputs)", "from all layers"),
        ({"match": "layer"}, "aggregate heads found in each example itself (at all positions, by zeros)",
         "from their own layers"),
        ({"match": "norm"}, "aggregate heads found in each example itself (at all positions, by zeros)",
         "of about the same norm"),
        ({"kind": "both"}, "aggregate and gather heads found in each example itself (at all positions, by zeros)",
         "from all layers"),
        ({"span": 1}, "aggregate heads found in each example itself (at all positions, by zeros, with 1 token after "
         "the noun counted as part of it)", "from all layers"),
        ({"denominator": "matrix"}, "aggregate heads found in each example itself (at all positions, by zeros, chosen "
         "by their share of the whole matrix, since that of the row was not analysed)", "from all layers"),
    ],
)  # fmt: skip
def test_the_finding_says_what_its_row_is(made: Made, row: dict[str, Any], heads: str, others: str) -> None:
    assert said(silenced(made, row)) == f"silencing the {heads} {END} random heads {others} to 2.10 ± 0.10."


def test_of_several_rows_the_finding_takes_the_first_of_its_order(made: Made) -> None:
    rows = [
        {"kind": "gather", "intervened": 9.1}, {"denominator": "matrix", "intervened": 9.2}, {"intervened": 9.3},
        {"selection": "held-out", "mode": "mean", "intervened": 9.4}, {"selection": "held-out", "intervened": 9.5},
        {"selection": "held-out", "match": "layer", "intervened": 5.5},
    ]  # fmt: skip
    for order in (rows, rows[::-1]):
        study = silenced(made, *order)
        text = said(study)
        assert "to 5.50 nats" in text
        assert "on the other half of the contexts" in text
        assert "random heads from their own layers" in text
        assert text.endswith(" (the first of 6 rows, in the order that their table gives).")
        shutil.rmtree(study)
        few = [{**row, "short": row_short} for row in order for row_short in [9 if "match" in row else 0]]
        study = silenced(made, *few)
        assert "to 9.50 nats" in said(study)  # its random heads are enough
        shutil.rmtree(study)
    page = sg.report(silenced(made, *rows)).read_text(encoding="utf-8")
    assert "takes the first by kind (aggregate, both, gather); share of (row, matrix); selection (held-out, " in page


@pytest.mark.parametrize(
    ("row", "none"),
    [
        ({}, "no aggregate head has the threshold's share of flow in any example, so none was silenced."),
        ({"selection": "held-out"}, "no aggregate head has the threshold's share of flow on either half of the "
         "contexts, so none was silenced."),
    ],
)  # fmt: skip
def test_without_heads_nothing_was_silenced(made: Made, row: dict[str, Any], none: str) -> None:
    assert said(silenced(made, row | {"heads_per_example": 0.0})) == none


def test_seeds_without_heads_are_counted(made: Made) -> None:
    study = made(seeds=3, steps=(0, 400))
    table = read_table(study, "interventions").assign(heads_per_example=[0.0, 1.0, 2.0])
    table.to_parquet(study / "results" / "interventions.parquet")
    assert summary(study)[-1].endswith("; in 1 of the seeds no aggregate head has the threshold's share of flow in any "
                                       "example.")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "values", "alike"),
    [
        ("selection", ("example", "held-out"), "silenced at all positions; replaced by zeros; control: random heads"),
        ("positions", ("all", "own"), "heads found in each example itself; replaced by zeros; control: random heads"),
        ("mode", ("mean", "resample"), "heads found in each example itself; silenced at all positions; control:"),
        ("match", ("none", "norm"), "found in each example itself; silenced at all positions; replaced by zeros."),
    ],
)
def test_a_column_that_tells_rows_apart_is_shown_and_the_others_are_said(
    made: Made, capsys: pytest.CaptureFixture[str], name: str, values: tuple[str, str], alike: str
) -> None:
    study = silenced(made, *({name: value} for value in values))
    table = read_table(study, "interventions")
    for shown in (intervention_table(table), grounds_shown(grounds_or_matters(table))):
        assert shown[name].tolist() == list(values)
        assert not {"selection", "positions", "mode", "match"} - {name} & set(shown)
    told = said_of_rows(table)
    assert f"{name}: “{values[0]}” is " in told
    assert alike in told
    assert said_of_rows(table.iloc[:1]).startswith("This row: heads found in each example itself; ")
    page = sg.report(study).read_text(encoding="utf-8")
    assert page.count(told.replace("'", "&#39;")) == 2  # of both tables
    summarise(study)
    lines = [line for line in capsys.readouterr().err.splitlines() if "silenced" in line]
    assert [f"(row, span 0, {name} {value})" in line for line, value in zip(lines, values, strict=True)] == [True] * 2


def test_tables_of_an_older_version_are_the_usual_ones(made: Made) -> None:
    study = made(seeds=1, steps=(0, 400))
    table = read_table(study, "interventions").drop(columns=["selection", "positions", "mode", "match", "span"])
    assert "found in each example itself; silenced at all positions; replaced by zeros" in said_of_rows(table)
    table.to_parquet(study / "results" / "interventions.parquet")
    assert "found in each example itself (at all positions, by zeros)" in said(study)
