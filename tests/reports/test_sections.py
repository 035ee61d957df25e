"""Values that sections compute, against values by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from symground.reports.formats import table_html
from symground.reports.sections.behaviour import acquisition
from symground.reports.sections.heads import explained, flow_and_effect, stability, strongest_heads, with_threshold
from symground.reports.sections.parts import TablePart


def heads(*rows: tuple[int, int, int, int, int]) -> pd.DataFrame:
    """(seed, step, example, layer, head) of aggregate heads by the row."""
    table = pd.DataFrame(rows, columns=["seed", "step", "example", "layer", "head"])
    return table.assign(model="m", kind="aggregate", denominator="row", share=0.5)


def test_stability_by_hand() -> None:
    found = heads(
        (0, 1, 0, 0, 0), (0, 1, 1, 0, 1),
        (0, 2, 0, 0, 0), (0, 2, 0, 1, 1), (0, 2, 1, 0, 0), (0, 2, 2, 2, 2),
        (1, 2, 0, 1, 0), (1, 2, 1, 1, 0),
    )  # fmt: skip
    (row,) = stability(found, 4).to_dict("records")
    # Seed 0: {00,11} and {00} share 1 of 2; neither shares with {22}; seed 1: its two sets are one.
    assert row["overlap of examples"] == pytest.approx(np.mean([0.5, 0, 0, 1]))
    # Examples 0 and 1 of seed 0 at steps 2 and 1: {00,11} with {00}, {00} with {01}.
    assert row["overlap with the checkpoint before"] == pytest.approx(np.mean([0.5, 0]))
    assert row["heads per example"] == pytest.approx(np.mean([4 / 4, 2 / 4]))
    assert row["sd over seeds"] == pytest.approx(np.std([1.0, 0.5], ddof=1))
    assert row["sd of layer over seeds"] == pytest.approx(np.std([3 / 4, 1.0], ddof=1))
    assert row["seeds"] == 2
    assert np.isnan(stability(found[found["seed"] == 0], 4)["sd over seeds"].iloc[0])


def test_what_named_heads_explain_by_hand() -> None:
    cells = [(0, 0, 0.9, 2.0), (0, 1, 0.4, 1.0), (1, 0, 0.1, 0.5), (1, 1, 0.0, -0.5)]
    table = pd.DataFrame(cells, columns=["layer", "head", "share", "effect"]).assign(
        model="m", seed=0, step=5, examples=8
    )
    shares = table.drop(columns="effect").assign(kind="aggregate", denominator="row")
    both = flow_and_effect(with_threshold(shares), table.drop(columns="share"))
    (row,) = explained(both).to_dict("records")
    assert row["correlation"] == pytest.approx(1.0)
    assert (row["named heads"], row["heads"]) == (2, 4)
    assert row["share of the effect"] == pytest.approx(3 / 3.5)
    assert row["largest effect of another"] == 0.5
    high = flow_and_effect(shares.assign(threshold=0.5), table.drop(columns="share"))
    assert explained(high)["named heads"].tolist() == [1]
    assert flow_and_effect(shares.iloc[:0], table).empty


def test_acquisition_by_hand() -> None:
    emerged = pd.DataFrame({"model": "m", "level": "noun", "unit": list("abcde"), "step": [10, 20, 40, np.inf, 30.0]})
    emerged["seeds"] = 1
    (row,) = acquisition(emerged, {"a": 12.0, "b": 14, "c": 18, "d": 20, "z": 1}).to_dict("records")
    assert row["correlation"] == pytest.approx(1.0)  # what never emerges is last
    assert (row["nouns"], row["never emerged"]) == (4, 1)
    assert acquisition(emerged, {"a": 12.0, "b": 14}).empty  # too few


def test_numbers_as_people_read_them() -> None:
    frame = pd.DataFrame({"step": [1200.0, np.inf], "p": [1e-9, 0.0456], "x": [-0.001, np.nan], "<b>": ["<i>", "&"]})
    html = table_html(frame)
    for shown in ("1,200", "never", "&lt; 0.001", "0.046", "<td>-0.001</td>", "–", "&lt;b&gt;", "&lt;i&gt;", "&amp;"):
        assert shown in html
    assert "<i>" not in html


def test_heads_in_the_order_of_their_effects_are_told_apart() -> None:
    effects = [0.0123, 0.0119, 0.00004, -0.2]
    swept = pd.DataFrame({"effect": effects, "first_order": 0.001}).assign(model="m", seed=0, step=5, layer=0, head=1)
    shown = strongest_heads(swept)
    assert shown["effect, nats"].tolist() == ["0.0123", "0.0119", "0.00004", "-0.2000"]
    assert set(shown["first-order estimate"]) == {"0.001"}


@pytest.mark.parametrize(("rows", "tall"), [(0, False), (14, False), (15, True)])
def test_a_table_of_more_than_fourteen_rows_has_a_box_of_its_own(rows: int, tall: bool) -> None:
    """A table is tall by the rows on the page, not by those of the download."""
    short, frame = pd.DataFrame({"x": [1]}), pd.DataFrame({"x": range(rows)})
    assert TablePart("gain", frame, "").tall is tall
    assert TablePart("gain", short, "", frame).tall is tall
