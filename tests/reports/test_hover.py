"""The values of a figure for the tooltips of its page, and steps to scale, from figures made by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import symground as sg
from symground.reports.figures import band, figure_of, heat_map, over_steps, svg_of
from symground.reports.hover import called, series_of


def drawn() -> tuple[Figure, list[dict[str, object]]]:
    """A figure with an artist of every kind, and its series."""
    figure = figure_of(6, 3)
    left, middle, right = figure.subplots(1, 3)
    frame = pd.DataFrame({"g": [1.0, np.nan, 3.0], "g_low": [0.5, np.nan, 2.5], "g_high": [1.5, np.nan, 4.0]})
    band(left, [0, 10, 20], frame, "g", "#0b6e8a", "gpt")
    left.plot([0, 20], [0, 4], color="#888888")  # a guide
    left.axhline(2)
    left.errorbar([5], [2.0], yerr=[0.25], label="with an error")
    called(left.scatter([1, 2], [3, 3.5]), "heads", ["layer 0, head 1", "layer 2, head 3"])
    left.set(title="one", xlabel="step", ylabel="gain (nats)")
    middle.bar([0, 1], [7, 8.5], label="count")
    middle.set_xticks([0, 1], ["dog", "cat"])
    table = pd.DataFrame([[1.0, 2.0, 3.0], [4.0, 5.0, np.nan]], columns=[0, 100, 1000])
    figure.colorbar(heat_map(right, table.rename_axis("layer")), ax=right, label="saliency (nats)")
    svg_of(figure)
    return figure, series_of(figure)


def test_every_kind_of_artist_gives_its_values() -> None:
    _, series = drawn()
    found = {str(one["of"]): [point[2:5] for point in one["points"]] for one in series}  # type: ignore[attr-defined]
    assert found["one, gpt"] == [["0", "1 [0.5, 1.5]", ""], ["20", "3 [2.5, 4]", ""]]
    assert found["one, with an error"] == [["5", "2 [1.75, 2.25]", ""]]
    assert found["one, heads"] == [["1", "3", "layer 0, head 1"], ["2", "3.5", "layer 2, head 3"]]
    assert found["count"] == [["dog", "7", ""], ["cat", "8.5", ""]]
    names = [f"step {step}, layer {layer}" for layer in (0, 1) for step in ("0", "100", "1,000")]
    values = ["1", "2", "3", "4", "5", "–"]
    assert found[""] == [["", value, name] for value, name in zip(values, names, strict=True)]
    assert len(series) == 5  # guides have no values
    assert {one["y"] for one in series if one["of"] == ""} == {"saliency (nats)"}
    assert {one["y"] for one in series if one["of"] != ""} == {"gain (nats)"}


def test_points_are_where_the_svg_draws_them() -> None:
    """Oracle: the marks that matplotlib itself writes into the SVG."""
    figure = figure_of(5, 3)
    axes = figure.subplots()
    axes.plot([1, 10, 100], [3.0, 1.0, 2.0], "o", label="x")
    axes.set(xscale="log", title="a title")
    svg = svg_of(figure, "name")
    marks = [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg)]
    (series,) = json.loads(unescape(re.search(r"data-series='([^']*)'", svg)[1]))  # type: ignore[index]
    for x, y, *_ in series["points"]:
        assert min(abs(x - a) + abs(y - b) for a, b in marks) < 0.2


def test_names_cannot_end_the_attribute() -> None:
    figure = figure_of(3, 3)
    axes = figure.subplots()
    evil = "' onload='alert(1)' \"><script>alert(1)</script>&amp;"
    called(axes.plot([1], [2], "o")[0], evil, [evil])
    svg = svg_of(figure, "name")
    head = svg[: svg.index(">")]
    assert "script" not in svg.replace("\\u003cscript\\u003e", "").replace("\\u003c/script\\u003e", "")
    (series,) = json.loads(re.search(r"data-series='([^']*)'", head)[1])  # type: ignore[index]
    assert (series["of"], series["points"][0][4]) == (evil, evil)


@pytest.mark.parametrize("steps", [[0, 25, 50, 75, 100, 200, 400, 800], [100, 1000, 1500], [0, 5]])
def test_a_cell_is_as_wide_as_its_stretch_of_training(steps: list[int]) -> None:
    figure = figure_of(4, 3)
    axes = figure.subplots()
    table = pd.DataFrame([range(len(steps))] * 3, columns=steps, dtype=float).rename_axis("layer")
    heat_map(axes, table)
    svg_of(figure)
    (series,) = series_of(figure)
    widths = np.array([point[5] for point in series["points"][: len(steps)]])
    stretches = [(steps[min(i + 1, len(steps) - 1)] - steps[max(i - 1, 0)]) / 2 for i in range(len(steps))]
    np.testing.assert_allclose(widths / widths.sum(), np.array(stretches) / sum(stretches), atol=2e-3)
    heights = {point[6] for point in series["points"]}
    assert max(heights) - min(heights) <= 0.11  # layers are alike


def test_steps_over_decades_are_logarithmic_and_say_so() -> None:
    pythia = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 4000]
    for steps, is_logarithmic in ((pythia, True), ([0, 25, 50, 75, *range(100, 801, 50)], False), ([0], False),
                                  (list(range(0, 20_001, 500)), False)):  # fmt: skip
        axes = figure_of(4, 3).subplots()
        axes.plot(steps, steps)
        over_steps(axes, steps)
        assert (axes.get_xscale() == "symlog") == is_logarithmic
        assert axes.get_xlabel() == ("step (logarithmic from 1 on)" if is_logarithmic else "step")
        left, right = axes.get_xlim()
        assert left <= 0 <= right  # a checkpoint at step 0 has a place
        if is_logarithmic:
            assert [tick for tick in axes.get_xticks() if left <= tick < 0] == []


def test_a_model_with_one_checkpoint_has_no_figure_over_training(made: Callable[..., Path]) -> None:
    """As of a pretrained model: no corpus, no training, one seed."""
    study = made("gpt2", models=("gpt2",), seeds=1, steps=(0,), shift=3.0)
    (study / "data" / "statistics.json").unlink()
    (study / "data").rmdir()
    (study / "results" / "r2.parquet").unlink()
    page = sg.report(study).read_text(encoding="utf-8")
    figures = re.findall(r'<figure id="figure-([^"]*)"', page)
    assert figures == ["saliency-regions", "lens-depths", "shares", "flow-effect", "calibration", "steering"]
    tables = re.findall(r'<figure id="table-([^"]*)"', page)
    assert {"final", "nouns", "training", "saliency", "lens", "head-counts", "interventions"} <= set(tables)
    assert "6 nouns × 3 contexts" in page
    assert "at step 0" not in page
    assert "gpt2: a scene with the noun makes its word easier to predict: gain " in page
    assert "Not recorded: parameters, machine, threads, precision, symground, torch, transformers." in page
