"""Does co-occurrence explain the gain?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from symground.analysis.statistics import peak
from symground.reports.figures import colours, figure_of, over_steps
from symground.reports.sections.parts import FigurePart, Section, StudyResults, TablePart, has_training


def cooccurrence(study: StudyResults) -> Section:
    """R² over training, with and without frequency."""
    r2, gains = study.results["r2"], study.results["gain"]
    title = "Is it co-occurrence?"
    text = "If co-occurrence alone explained the gain, R² of the gain on co-occurrence counts would stay high."
    if r2.empty or gains.empty:
        return Section("cooccurrence", title, text, (), study.lacking(r2="R²", gain="the gain"))
    made = study.analyze("surprisal")
    usable = usable_r2(study)
    drawn = [column for column in ("r2", "partial_r2") if column in r2 and has_training(r2)]
    parts: list[FigurePart | TablePart] = [
        FigurePart(column.replace("_", "-"), r2_curves(usable, column), made) for column in drawn
    ]
    missing = []
    if "partial_r2" not in r2:
        missing.append(f"intervals, PMI and partial R²: these results are of an older version ({made} --again)")
    parts += [
        TablePart("r2-peak", peak(usable), made, _peak_shown(peak(usable))),
        TablePart("r2", r2, made, _shown(r2)),
    ]
    return Section("cooccurrence", title, text, parts, missing)


def usable_r2(study: StudyResults) -> pd.DataFrame:
    """The rows of the results' table "r2" that can be interpreted: the mean gain's interval over nouns is above 0."""
    r2, above = study.results["r2"], _above(study.training)
    return r2[[above.get((m, s), False) for m, s in zip(r2["model"], r2["step"], strict=True)]]


def _above(training: pd.DataFrame) -> dict[tuple[str, int], bool]:
    """(model, step) → whether the gain's interval over nouns is above 0."""
    keys = zip(training["model"], training["step"], strict=True)
    return dict(zip(keys, (training["gain_low"].fillna(0) > 0).tolist(), strict=True))


def _shown(r2: pd.DataFrame) -> pd.DataFrame:
    wanted = ["model", "seed", "step", "r2", "r2_low", "r2_high", "slope", "pmi_r2", "partial_r2", "nouns", "mean_gain"]
    shown = r2[[name for name in wanted if name in r2]]
    return shown.rename(columns=lambda name: name.replace("_", " ").replace("r2", "R²").replace("pmi", "PMI"))


def _peak_shown(found: pd.DataFrame) -> pd.DataFrame:
    titles = {
        "peak_step": "step of the largest", "peak": "largest R²", "slope": "slope there", "last_step": "last step",
        "last": "last R²", "last_slope": "last slope",
    }  # fmt: skip
    return found.rename(columns=titles)


def r2_curves(r2: pd.DataFrame, column: str) -> Figure:
    """R², or another column of the table "r2", over training."""
    figure = figure_of(5.2, 3.1)
    axes = figure.subplots()
    for model, colour in zip(sorted(r2["model"].unique()), colours(), strict=False):
        of_model = r2[(r2["model"] == model) & r2[column].notna()]
        numbers = [c for c in (column, f"{column}_low", f"{column}_high", "slope") if c in of_model]
        mean = of_model.groupby("step")[numbers].mean()
        if mean.empty:
            continue
        axes.plot(mean.index, mean[column], color=colour, linewidth=1.2, label=model)
        if f"{column}_low" in mean:
            low, high = (mean[f"{column}_{end}"].astype(float) for end in ("low", "high"))
            axes.fill_between(np.asarray(mean.index, dtype=float), low, high, color=colour, alpha=0.15, linewidth=0)
        for marker, rising in (("^", True), ("v", False)):
            part = mean[(mean["slope"] > 0) == rising] if column == "r2" else mean.iloc[:0]
            axes.plot(part.index, part[column], marker, color=colour, markersize=4)
    axes.set(ylabel="R²" if column == "r2" else "partial R²", ylim=(0, 1))
    over_steps(axes, r2["step"])
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure
