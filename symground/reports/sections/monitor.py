"""Can the heads detect wrong choices, and does amplifying them help?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from symground.analysis.causal import enough
from symground.reports.figures import colours, figure_of
from symground.reports.formats import control_cell, number, with_interval
from symground.reports.hover import called
from symground.reports.sections.parts import FigurePart, Section, StudyResults, TablePart, last_checkpoints


def monitor(study: StudyResults) -> Section:
    """Detectors of ungrounded choices, and steering."""
    detectors, calibration, steering = (study.results[name] for name in ("monitor", "calibration", "steering"))
    if "short" not in steering:  # results of an older version
        steering = steering.assign(short=np.nan)
    made = study.analyze("monitor")
    parts: list[FigurePart | TablePart] = []
    if not detectors.empty:
        parts.append(TablePart("monitor", detectors, made, _detectors_shown(detectors)))
    if not calibration.empty:
        parts.append(FigurePart("calibration", calibration_figure(calibration), made))
    if not steering.empty:
        parts += [
            FigurePart("steering", steering_figure(steering), made),
            TablePart("steering", steering, made, _steering_shown(steering)),
        ]
    text = (
        "The flow of the aggregate heads is used to detect a wrong choice. It is compared with what the model's output "
        "tells (the probability of the choice, the entropy, both), with attention to the ENV noun (of all heads, and "
        "of the same heads), and with flow, probability and entropy together (all three). Then the heads' outputs are "
        "amplified or silenced while the model decides."
    )
    title = "Do they detect wrong choices, and does amplifying them help?"
    missing = study.lacking(
        monitor="detectors of wrong choices", calibration="the calibration of detectors", steering="heads amplified"
    )
    return Section("monitor", title, text, parts, missing)


def _detectors_shown(detectors: pd.DataFrame) -> pd.DataFrame:
    columns = zip(detectors["auroc"], detectors["auroc_low"], detectors["auroc_high"], strict=True)
    auroc = [with_interval(*of_row) for of_row in columns]
    shown = detectors[["model", "seed", "step", "detector"]].assign(AUROC=auroc)
    rest = {"brier": "Brier", "brier_base": "Brier of a constant", "ece": "calibration error", "wrong": "wrong"}
    for name, title in rest.items():
        shown[title] = detectors[name] if name == "wrong" else [number(value, 3) for value in detectors[name]]
    shown = shown.assign(**{name: detectors[name] for name in ("examples", "contexts", "nouns", "heads")})
    if "note" in detectors and (told := detectors["note"].fillna("").astype(str)).any():  # why an interval is not there
        shown["note"] = told
    return shown


def _steering_shown(steering: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": steering["model"], "seed": steering["seed"], "step": steering["step"],
            "factor": steering["factor"], "accuracy": [number(value, 3) for value in steering["accuracy"]],
            "random heads": [control_cell(row, 3) for row in steering.to_dict("records")], "p": steering["p"],
            "surprisal": steering["surprisal"], "heads per example": steering["heads_per_example"],
            "examples": steering["examples"], "draws": steering["draws"], "too few controls": steering["short"],
        }
    )  # fmt: skip


def calibration_figure(calibration: pd.DataFrame) -> Figure:
    """Observed against predicted shares of wrong choices; a panel per model, its first seed and last checkpoint."""
    models = sorted(calibration["model"].unique())
    figure = figure_of(3.4 * len(models) + 0.6, 3.2)
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    shown = ("flow", "max probability", "entropy", "all three")
    for axes, model in zip(panels, models, strict=True):
        part = calibration[calibration["model"] == model]
        part = part[part["seed"] == part["seed"].min()]
        part = part[part["step"] == part["step"].max()]
        for name, colour in zip(shown, colours(), strict=False):
            frame = part[part["detector"] == name]
            (line,) = axes.plot(frame["predicted"], frame["observed"], color=colour, linewidth=1, label=name)
            called(line, name, [f"{count} examples" for count in frame["count"]])
            axes.scatter(frame["predicted"], frame["observed"], s=8 + 2 * frame["count"] ** 0.5, color=colour)
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=0.8)
        axes.set(title=model, xlabel="predicted share wrong", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    panels[0].set_ylabel("observed share wrong")
    panels[0].legend(fontsize=8)
    return figure


def steering_figure(steering: pd.DataFrame) -> Figure:
    """Accuracy against the factor, mean over seeds, at the last checkpoint."""
    last = last_checkpoints(steering)
    enough_controls = [
        enough(short, examples) for short, examples in last[["short", "examples"]].itertuples(index=False)
    ]
    last = last.assign(control=last["control"].where(np.array(enough_controls, dtype=bool)))
    figure = figure_of(5.2, 3.1)
    axes = figure.subplots()
    for (model, frame), colour in zip(last.groupby("model", sort=True), colours(), strict=False):
        mean = frame.groupby("factor")[["accuracy", "control"]].mean()
        axes.plot(mean.index, mean["accuracy"], color=colour, marker=".", label=model)
        (control,) = axes.plot(mean.index, mean["control"], "--", color=colour, linewidth=1)
        called(control, f"{model}, random heads")
    axes.set(xlabel="factor on the heads' outputs", ylabel="choice is in the scene", ylim=(0, 1.02))
    axes.legend()
    return figure
