"""Which layers carry the link?"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from symground.analysis.probing import PATCHES
from symground.reports.figures import band, colours, figure_of, heat_map
from symground.reports.sections.parts import (
    FigurePart,
    Section,
    StudyResults,
    TablePart,
    has_training,
    last_checkpoints,
)

_OF_GAIN = {"low": "gain_low", "high": "gain_high"}
_CALLED = {"env": "ENV noun", "event": "rest of its utterance", "other": "rest of the context", PATCHES: "patches"}


def layers(study: StudyResults) -> Section:
    """Saliency into the prediction position by layer, and the gain that lenses read at each depth."""
    saliency, lens = study.results["saliency"], study.results["lens"]
    parts: list[FigurePart | TablePart] = []
    if not saliency.empty:
        made = study.analyze("saliency")
        parts += [
            *([FigurePart("saliency", saliency_layers(saliency), made)] if has_training(saliency) else []),
            FigurePart("saliency-regions", saliency_regions(saliency), made),
            TablePart("saliency", saliency, made),
        ]
    if not lens.empty:
        made = study.analyze("lens")
        table = lens_table(lens)
        parts += [
            FigurePart("lens", lens_figure(table), made)
            if has_training(table)
            else FigurePart("lens-depths", lens_depths(table), made),
            TablePart("lens", table, made),
        ]
    text = (
        "Saliency shows through which layers the gradient flows from the word back to the scene. Lenses show from "
        "which depth on the word can be read."
    )
    missing = study.lacking(saliency="layer saliency", lens="the tuned lens")
    return Section("layers", "In which layers?", text, parts, missing)


def saliency_layers(saliency: pd.DataFrame) -> Figure:
    """Saliency from the ENV noun into the prediction position, by layer and step; a panel per model."""
    of_noun = saliency[saliency["region"] == "env"]
    models = sorted(of_noun["model"].unique())
    figure = figure_of(4.6 * len(models), 2.9)
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        table = of_noun[of_noun["model"] == model].pivot_table(
            index="layer", columns="step", values="value", aggfunc="mean"
        )
        figure.colorbar(heat_map(axes, table), ax=axes, label="saliency (nats)")
        axes.set(title=model, ylabel="layer")
    return figure


def saliency_regions(saliency: pd.DataFrame) -> Figure:
    """Saliency into the prediction position by layer and region at the last checkpoint; a panel per model."""
    last = last_checkpoints(saliency, "model")
    models = sorted(last["model"].unique())
    figure = figure_of(3.4 * len(models) + 1.4, 2.8)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        of_model = last[last["model"] == model]
        for (region, frame), colour in zip(of_model.groupby("region", sort=False), colours(), strict=False):
            mean = frame.groupby("layer")["value"].mean()
            axes.plot(mean.index, mean, color=colour, marker=".", label=_CALLED.get(str(region), str(region)))
        axes.set(title=model, xlabel="layer", xticks=sorted(of_model["layer"].unique()))
    panels[0].set_ylabel("saliency (nats)")
    panels[-1].legend(fontsize=8)
    return figure


def lens_table(lens: pd.DataFrame) -> pd.DataFrame:
    """A row per model, lens, step and depth, with the gain's interval over nouns (normal approximation)."""
    by_noun = lens.groupby(["model", "lens", "step", "depth", "target"])[["matched", "mismatched", "gain"]].mean()
    grouped = by_noun.groupby(["model", "lens", "step", "depth"])
    table, error = grouped.mean(), 1.96 * grouped["gain"].sem()
    table = table.assign(low=table["gain"] - error, high=table["gain"] + error, nouns=grouped.size())
    seeds = lens.groupby("model")["seed"].nunique()
    table = table.reset_index().sort_values(["model", "lens", "step", "depth"], ascending=[True, False, True, True])
    return table.assign(seeds=table["model"].map(seeds))


def lens_depths(table: pd.DataFrame) -> Figure:
    """Gain by depth at the last checkpoint, a line per lens; a panel per model."""
    last = last_checkpoints(table, "model")
    models = sorted(last["model"].unique())
    figure = figure_of(3.4 * len(models) + 1.4, 2.8)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        of_model = last[last["model"] == model]
        for (name, frame), colour in zip(of_model.groupby("lens", sort=False), colours(), strict=False):
            band(axes, frame["depth"], frame.rename(columns=_OF_GAIN), "gain", colour, f"{name} lens")
        axes.set(title=model, xlabel="depth", xticks=sorted(of_model["depth"].unique()))
    panels[0].set_ylabel("gain (nats)")
    panels[-1].legend(fontsize=8)
    return figure


def lens_figure(table: pd.DataFrame) -> Figure:
    """Gain by depth and step; a row of panels per lens, a column per model."""
    models, lenses = sorted(table["model"].unique()), [n for n in ("tuned", "logit") if n in set(table["lens"])]
    figure = figure_of(4.2 * len(models), 2.5 * len(lenses))
    panels = figure.subplots(len(lenses), len(models), squeeze=False)
    largest = max(float(table["gain"].max()), 0.1)
    for row, name in zip(panels, lenses, strict=True):
        for axes, model in zip(row, models, strict=True):
            part = table[(table["model"] == model) & (table["lens"] == name)]
            image = heat_map(axes, part.pivot_table("gain", "depth", "step"), largest)
            axes.set(title=f"{model}, {name} lens", ylabel="depth")
    figure.colorbar(image, ax=panels, label="gain (nats)")
    return figure
