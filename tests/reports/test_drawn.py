"""The points of each figure, against the table that it draws, in which no two values are equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from symground.analysis.results import read_table
from symground.data.words import cdi_categories
from symground.reports.sections import SECTIONS
from symground.reports.sections.behaviour import emergence_figure, gain_curves, surprisal_curves
from symground.reports.sections.beside import beside, gains_figure
from symground.reports.sections.cooccurrence import _above, r2_curves
from symground.reports.sections.heads import counts_figure, flow_figure, shares_figure
from symground.reports.sections.layers import lens_figure, lens_table, saliency_layers, saliency_regions
from symground.reports.sections.monitor import calibration_figure, steering_figure
from symground.reports.sections.parts import FigurePart, StudyResults

#: The figures of the sections after behaviour.
PICTURES = {
    "r2", "partial-r2", "saliency", "saliency-regions", "lens", "head-counts", "shares", "flow-effect", "calibration",
    "steering",
}  # fmt: skip
MODELS = ["gpt2-4l", "mamba2-4l"]
Points = list[tuple[float, float]]


@pytest.fixture(scope="module")
def study(distinct_study: Path) -> StudyResults:
    return StudyResults.read(distinct_study)


def drawn(figure: Figure, marker: str | None = None) -> dict[tuple[str, str], Points]:
    """(panel's title, line's label) → the line's points; with ``marker``, only of lines that have it."""
    found = {}
    for axes in figure.axes:
        for i, line in enumerate(axes.lines):
            if marker is None or line.get_marker() == marker:
                label = str(line.get_label())
                key = (axes.get_title(), f"{i}" if label.startswith("_") else label)
                found[key] = [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    return found


def same(points: Points, frame: pd.DataFrame, x: str, y: str) -> None:
    assert len(frame) > 0
    assert points == [pytest.approx(pair) for pair in frame[[x, y]].to_numpy(float).tolist()]


def test_behaviour_over_training(study: StudyResults) -> None:
    training = study.training
    curves, gains, beside = map(
        drawn, (surprisal_curves(training), gain_curves(training), gains_figure(training.assign(study="s")))
    )
    for model in MODELS:
        frame = training[training["model"] == model]
        for column in ("matched", "mismatched"):
            same(curves[model, column], frame, "step", column)
        same(gains["", model], frame, "step", "gain")
        same(beside["", f"s, {model}"], frame, "step", "gain")
    assert len(curves) == 4


def test_thirty_models_are_thirty_lines(study: StudyResults) -> None:
    one = study.training[study.training["model"] == MODELS[0]]
    training = pd.concat([one.assign(model=f"m{i}") for i in range(30)])
    assert {f"m{i}" for i in range(30)} <= {label for _, label in drawn(gain_curves(training))}


def test_emergence_is_a_point_for_a_noun_in_the_row_of_its_category() -> None:
    known = cdi_categories()
    steps = {"dog": 10.0, "book": 25.0, "ball": 40.0, "cup": np.inf}
    rows = [("m", "noun", noun, step, step - 1, step + 1) for noun, step in steps.items()]
    rows += [("m", "category", "animals", 10.0, 7.0, np.inf), ("m", "category", "toys", np.inf, 1.0, np.inf)]
    emerged = pd.DataFrame(rows, columns=["model", "level", "unit", "step", "low", "high"])
    (axes,) = (figure := emergence_figure(emerged)).axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    expected = {(step, known[noun]) for noun, step in steps.items() if np.isfinite(step)}
    points = [point for own in drawn(figure, ".").values() for point in own]
    assert {(x, labels[round(y)]) for x, y in points} == expected
    assert len(points) == 3
    assert [(x, labels[round(y)]) for own in drawn(figure, "|").values() for x, y in own] == [(10.0, "animals")]
    (ends,) = (segment for lines in axes.collections for segment in lines.get_segments())
    assert ends[:, 0].tolist() == [7.0, 10.0]  # an end that is never is left out
    assert axes.get_title() == "m"


@pytest.mark.parametrize("column", ["r2", "partial_r2"])
def test_r2_is_the_mean_over_seeds(distinct_study: Path, column: str) -> None:
    r2 = read_table(distinct_study, "r2")
    r2.loc[r2["step"] == 200, "slope"] *= -1
    figure = r2_curves(r2, column)
    for model in MODELS:
        mean = r2[r2["model"] == model].groupby("step")[["r2", "partial_r2", "slope"]].mean().reset_index()
        same(drawn(figure)["", model], mean, "step", column)
    for marker, rising in (("^", True), ("v", False)):
        means = r2.groupby(["model", "step"])[["r2", "slope"]].mean().reset_index()
        means = means[(means["slope"] > 0) == rising]
        points = sorted(point for own in drawn(figure, marker).values() for point in own)
        expected = sorted(map(tuple, means[["step", "r2"]].to_numpy(float).tolist())) if column == "r2" else []
        assert points == [pytest.approx(pair) for pair in expected]


def test_r2_means_something_where_the_gain_is_above_0_by_its_interval(study: StudyResults) -> None:
    training = study.training.assign(gain_low=0.1)
    training.loc[(training["model"] == MODELS[0]) & (training["step"] == 100), "gain_low"] = np.nan  # of one noun
    training.loc[(training["model"] == MODELS[1]) & (training["step"] == 200), "gain_low"] = 0.0
    above = _above(training)
    assert {key for key, is_above in above.items() if not is_above} == {(MODELS[0], 100), (MODELS[1], 200)}
    assert len(above) == 6


def test_layers(study: StudyResults) -> None:
    saliency = study.results["saliency"]
    found = drawn(saliency_regions(saliency))
    last = saliency[saliency["step"] == 400]
    for model in MODELS:
        own = [points for (title, _), points in found.items() if title == model]
        expected = [
            part.groupby("layer")["value"].mean().reset_index()
            for _, part in last[last["model"] == model].groupby("region", sort=False)
        ]  # fmt: skip
        for points, frame in zip(own, expected, strict=True):
            same(points, frame, "layer", "value")
    of_noun = saliency[saliency["region"] == "env"].groupby(["model", "layer", "step"])["value"].mean()
    for axes in saliency_layers(saliency).axes[:2]:
        assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "1", "2"]
        assert list(axes.get_yticks()) == [0, 1, 2]
    grids = {axes.get_title(): axes.collections[0].get_array() for axes in saliency_layers(saliency).axes[:2]}
    for model in MODELS:
        np.testing.assert_allclose(np.ravel(grids[model]), of_noun[model])
    table = lens_table(study.results["lens"])
    panels = {axes.get_title(): axes.collections[0].get_array() for axes in lens_figure(table).axes if axes.get_title()}
    assert set(panels) == {f"{model}, {lens} lens" for model in MODELS for lens in ("tuned", "logit")}
    for name, values in panels.items():
        model, _, lens = name.removesuffix(" lens").partition(", ")
        part = table[(table["model"] == model) & (table["lens"] == lens)].sort_values(["depth", "step"])
        np.testing.assert_allclose(np.ravel(values), part["gain"])


def test_heads(study: StudyResults) -> None:
    shares = study.results["shares"]
    last = shares[(shares["step"] == 400) & (shares["denominator"] == "row") & (shares["seed"] == 0)]
    found = drawn(shares_figure(shares))
    for model in MODELS:
        for kind in ("aggregate", "gather"):
            same(found[model, kind], last[(last["model"] == model) & (last["kind"] == kind)], "null", "share")
    assert list(found.values()).count([(0.0, 0.0), (1.0, 1.0)]) == len(MODELS)  # where the two shares are equal
    own = dict(zip(MODELS, (0.2, 0.4), strict=True))
    for axes in shares_figure(shares.assign(threshold=shares["model"].map(own))).axes:
        dashed = [list(line.get_ydata()) for line in axes.lines if line.get_linestyle() == "--"]
        assert dashed == [[own[axes.get_title()]] * 2, [0, 1]]  # a level line and an upright one
    both = last[last["kind"] == "aggregate"].assign(effect=lambda frame: frame["null_95"] - 0.5)
    found = drawn(flow_figure(both))
    for model in MODELS:
        same(found["", model], both[both["model"] == model], "share", "effect")
    counts = [(model, kind, d, seed, step) for model in MODELS for kind in ("aggregate", "gather")
              for d in ("row", "matrix") for seed in (0, 1) for step in (0, 5)]  # fmt: skip
    of_counts = pd.DataFrame(counts, columns=["model", "kind", "denominator", "seed", "step"])
    of_counts["heads per example"] = np.arange(len(counts)) ** 1.5
    panels = {axes.get_title(): axes.lines for axes in counts_figure(of_counts).axes}
    mean = of_counts.groupby(["kind", "model", "denominator", "step"])["heads per example"].mean()
    for kind in ("aggregate", "gather"):
        lines = iter(panels[f"{kind} heads"])
        for model in MODELS:
            for denominator, dash in (("row", "-"), ("matrix", "--")):
                line: Any = next(lines)
                assert line.get_linestyle() == dash
                assert (line.get_label() == model) == (denominator == "row")
                np.testing.assert_allclose(line.get_ydata(), mean[kind, model, denominator])
                assert list(line.get_xdata()) == [0, 5]


def test_monitor_and_steering(study: StudyResults) -> None:
    calibration = study.results["calibration"]
    found = drawn(calibration_figure(calibration))
    for model in MODELS:
        for name in ("flow", "entropy"):
            part = calibration[(calibration["model"] == model) & (calibration["detector"] == name)]
            part = part[(part["seed"] == 0) & (part["step"] == part["step"].max())]
            same(found[model, name], part, "predicted", "observed")
    assert list(found.values()).count([(0.0, 0.0), (1.0, 1.0)]) == len(MODELS)
    steering = study.results["steering"].assign(short=0)
    found = drawn(steering_figure(steering))
    for i, model in enumerate(MODELS):
        mean = steering[steering["model"] == model].groupby("factor")[["accuracy", "control"]].mean().reset_index()
        same(found["", model], mean, "factor", "accuracy")
        same(found["", str(2 * i + 1)], mean, "factor", "control")


def test_studies_of_one_name_are_numbered(study: StudyResults) -> None:
    without = replace(study, results={"gain": pd.DataFrame()})
    assert [text.partition(":")[0] for text in beside([without, without]).missing] == ["study (1)", "study (2)"]


def test_every_figure_is_in_the_page_and_what_lacks_is_said(study: StudyResults) -> None:
    found = [section(study) for section in SECTIONS]
    names = {part.name for section in found for part in section.parts if isinstance(part, FigurePart)}
    assert names == PICTURES
    assert not [text for section in found for text in section.missing]
