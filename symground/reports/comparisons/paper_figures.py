"""The figures of a testbed of the study: surprisal curves, R² and saliency by layer, a panel for each model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from symground.reports.comparisons.paper import MIDDLE, Tables
from symground.reports.figures import MATCHED, MISMATCHED, PALETTE, band, figure_of, svg_of
from symground.reports.sections.parts import last_checkpoints


def figures(found: Tables, tokens: int) -> dict[str, str]:
    """name → SVG: curves, r2 and layers, a panel per model."""
    drawn = {"curves": _curves(found["curves"], tokens), "r2": _r2(found, tokens)}
    if len(found["layers"]):
        drawn["layers"] = _layers_figure(found)
    return drawn


def _panels(models: Sequence[str], ylabel: str, xlabel: str) -> tuple[Any, Iterator[tuple[str, Axes]]]:
    columns = min(3, len(models))
    figure = figure_of(2.9 * columns + 0.4, 2.5 * -(-len(models) // columns))
    grid = figure.subplots(-(-len(models) // columns), columns, squeeze=False, sharey=True)

    def each() -> Iterator[tuple[str, Axes]]:
        for place, axes in enumerate(grid.flat):
            if place >= len(models):
                axes.set_visible(False)
                continue
            axes.set_title(models[place], fontsize=10)
            axes.set_xlabel(xlabel)
            if place % columns == 0:
                axes.set_ylabel(ylabel)
            yield models[place], axes

    return figure, each()


def _curves(curves: pd.DataFrame, tokens: int) -> str:
    figure, panels = _panels(list(dict.fromkeys(curves["model"])), "surprisal (nats)", "tokens (millions)")
    for model, axes in panels:
        part = curves[curves["model"] == model]
        x = part["step"] * tokens / 1e6
        for name, colour in (("matched", MATCHED), ("mismatched", MISMATCHED)):
            over_nouns = part.drop(columns=[c for c in part if "_seed_" in str(c)])  # too few seeds for intervals
            band(axes, x, over_nouns, name, colour, name)
    figure.axes[0].legend(fontsize=8)
    return svg_of(figure)


def _r2(found: Tables, tokens: int) -> str:
    figure, panels = _panels(list(dict.fromkeys(found["curves"]["model"])), "R²; gain (nats) / 5", "tokens (millions)")
    for model, axes in panels:
        part, gains = (frame[frame["model"] == model] for frame in (found["r2"], found["curves"]))
        x = np.asarray(part["step"] * tokens / 1e6, dtype=float)
        axes.plot(x, part["r2"], color=PALETTE[0], marker=".", markersize=4, linewidth=1.4, label="R²")
        low, high = (part[f"r2_{end}"].astype(float) for end in ("low", "high"))
        axes.fill_between(x, low, high, color=PALETTE[0], alpha=0.18, linewidth=0)
        axes.plot(gains["step"] * tokens / 1e6, gains["gain"] / 5, color=PALETTE[1], linewidth=1.2, label="gain / 5")
        axes.set_ylim(-0.05, 1)
    figure.axes[0].legend(fontsize=8)
    return svg_of(figure)


def _layers_figure(found: Tables) -> str:
    last = last_checkpoints(found["layers"], "model")
    figure, panels = _panels(list(dict.fromkeys(last["model"])), "share of saliency", "layer")
    heads = found["heads"]
    for model, axes in panels:
        part = last[last["model"] == model]
        axes.axvspan(MIDDLE[0] * len(part) - 0.5, MIDDLE[1] * len(part) - 0.5, color="#000000", alpha=0.07, linewidth=0)
        axes.bar(part["layer"], part["share"], color=PALETTE[0])
        axes.set_xticks(range(0, len(part), -(-len(part) // 6)))
        own = heads[(heads["model"] == model) & (heads["denominator"] == "row")]
        if len(own):
            mean = own.sort_values("step")["mean_layer"].iloc[-1]
            axes.axvline(mean, color=PALETTE[1], linewidth=1.6, linestyle="--", label="aggregate heads' mean layer")
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.axes[0].legend(fontsize=7)
    return svg_of(figure)
