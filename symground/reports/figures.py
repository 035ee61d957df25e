"""The study's figures, as SVG text to stand inside the page."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MATCHED, MISMATCHED = "#0b6e8a", "#b4532a"
PALETTE = ("#0b6e8a", "#b4532a", "#5a7d2a", "#7a4fa3", "#8a6d0b", "#444444")
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be selected, searched and read aloud
    "svg.hashsalt": "symground",  # same data, same bytes
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def surprisal_curves(gains: pd.DataFrame) -> str:
    """Matched and mismatched surprisal over training, a panel per model; bands are 95 % intervals over nouns."""
    models = sorted(gains["model"].unique())
    figure = figure_of(3.2 * len(models) + 1.2, 3.1)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        frame = gains[gains["model"] == model]
        for column, colour in (("matched", MATCHED), ("mismatched", MISMATCHED)):
            _band(axes, frame, column, colour, column)
        axes.set(title=model, xlabel="step")
    panels[0].set_ylabel("surprisal (nats)")
    panels[0].legend()
    return svg_of(figure)


def gain_curves(gains: pd.DataFrame) -> str:
    """Gain over training, a line per model; bands are 95 % intervals over nouns."""
    figure = figure_of(5.2, 3.1)
    axes = figure.subplots()
    for model, colour in zip(sorted(gains["model"].unique()), _colours(), strict=False):
        _band(axes, gains[gains["model"] == model], "gain", colour, model)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set(xlabel="step", ylabel="grounding gain G (nats)")
    axes.legend()
    return svg_of(figure)


def r2_curves(r2: pd.DataFrame, gains: pd.DataFrame) -> str:
    """R² over training where the mean gain is above 0 by its 95 % interval; triangles point along the slope."""
    by_noun = gains.groupby(["model", "step", "target"])["gain"].mean().groupby(["model", "step"])
    above = by_noun.mean() - 1.96 * by_noun.sem() > 0
    figure = figure_of(5.2, 3.1)
    axes = figure.subplots()
    for model, colour in zip(sorted(r2["model"].unique()), _colours(), strict=False):
        mean = r2[(r2["model"] == model) & r2["r2"].notna()].groupby("step")[["r2", "slope"]].mean()
        mean = mean[above[model].reindex(mean.index).to_numpy(dtype=bool)]
        if mean.empty:
            continue
        axes.plot(mean.index, mean["r2"], color=colour, linewidth=1.2, label=model)
        for marker, rising in (("^", True), ("v", False)):
            part = mean[(mean["slope"] > 0) == rising]
            axes.plot(part.index, part["r2"], marker, color=colour, markersize=4)
    axes.set(xlabel="step", ylabel="R² of gain on log(1 + co-occurrence)", ylim=(0, 1))
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return svg_of(figure)


def saliency_layers(saliency: pd.DataFrame) -> str:
    """Saliency from the ENV noun into the prediction position, by layer and step; a panel per model."""
    models = sorted(saliency["model"].unique())
    figure = figure_of(4.6 * len(models), 2.9)
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        frame = saliency[(saliency["model"] == model) & (saliency["region"] == "env")]
        table = frame.pivot_table(index="layer", columns="step", values="value", aggfunc="mean")
        image = axes.pcolormesh(np.arange(len(table.columns) + 1), np.arange(len(table) + 1), table, cmap="viridis")
        ticks = np.unique(np.linspace(0, len(table.columns) - 1, 6).astype(int))
        axes.set_xticks(ticks + 0.5, [str(table.columns[i]) for i in ticks])
        axes.set_yticks(np.arange(len(table)) + 0.5, [str(layer) for layer in table.index])
        axes.set(title=model, xlabel="step", ylabel="layer")
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, label="saliency (nats)")
    return svg_of(figure)


def _band(axes: Axes, frame: pd.DataFrame, column: str, colour: str, label: str) -> None:
    by_noun = frame.groupby(["step", "target"])[column].mean()  # mean over seeds
    grouped = by_noun.groupby("step")
    mean, half = grouped.mean(), 1.96 * grouped.sem().fillna(0.0)
    axes.plot(mean.index, mean, color=colour, linewidth=1.4, marker=".", markersize=4, label=label)
    axes.fill_between(mean.index, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)


def _colours() -> tuple[str, ...]:
    return PALETTE * 4


def figure_of(width: float, height: float) -> Figure:
    """An empty figure, in inches, in the report's style."""
    matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]
    return Figure(figsize=(width, height), layout="constrained")


def svg_of(figure: Figure) -> str:
    """The figure as SVG, without what stands before its element."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]
