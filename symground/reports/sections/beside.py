"""Studies or runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from symground.analysis.statistics import emergence, holm, paired
from symground.reports.figures import band, colours, figure_of, over_steps
from symground.reports.sections.causal import intervention_table
from symground.reports.sections.parts import FigurePart, Section, StudyResults, TablePart, last_checkpoints
from symground.reports.sections.silencing import completed, said_of_rows


def beside(studies: Sequence[StudyResults]) -> Section:
    """The gain over training of all studies, and the difference of the first study from each other one."""
    made = "symground report " + " ".join(study.place for study in studies)
    names = [study.name for study in studies]
    if len(set(names)) < len(names):
        names = [f"{name} ({i + 1})" for i, name in enumerate(names)]
    title = "What differs?"
    text = "The gain of every model of every study. A step may be another number of tokens in another study."
    missing = [
        f"{name}: the gain ({study.analyze('surprisal')})"
        for name, study in zip(names, studies, strict=True)
        if study.results["gain"].empty
    ]
    there = [(name, study) for name, study in zip(names, studies, strict=True) if not study.results["gain"].empty]
    if not there:
        return Section("beside", title, text, (), missing)
    training = pd.concat([study.training.assign(study=name) for name, study in there], ignore_index=True)
    last = last_checkpoints(training, "study", "model")
    columns = ["study", "model", "step", "matched", "mismatched", "gain", "gain_low", "gain_high", "gain_seed_low",
               "gain_seed_high", "p_holm", "d", "nouns", "seeds"]  # fmt: skip
    parts: list[FigurePart | TablePart] = [
        FigurePart("beside-gains", gains_figure(training), made),
        TablePart(
            "beside-last",
            last[columns],
            made,
            last[columns].rename(columns=lambda name: name.replace("_holm", "").replace("_", " ")),
        ),
    ]
    differences = _differences(there)
    if len(differences):
        parts.append(TablePart("beside-differences", differences, made))
    emerged = []
    for name, study in there:
        missing += [f"{name}: {text}" for text in study.lacking(contexts="emergence steps")]
        if study.results["contexts"].empty:
            continue
        try:
            emerged.append(emergence(study.results["contexts"]).assign(study=name))
        except ValueError as error:
            missing.append(f"{name}: emergence steps ({error})")
    if emerged:
        table = pd.concat(emerged, ignore_index=True)
        wholes = table[table["level"] == "model"][["study", "model", "step", "low", "high", "count", "seeds"]]
        parts.append(TablePart("beside-emergence", table, made, wholes.rename(columns={"count": "nouns"}).round()))
    tables = [
        completed(study.results["interventions"]).assign(study=name)
        for name, study in there
        if not study.results["interventions"].empty
    ]
    if tables:
        table = pd.concat(tables, ignore_index=True)
        shown = intervention_table(table)
        parts.append(TablePart("beside-interventions", shown, made, note=said_of_rows(table)))
    return Section("beside", title, text, parts, missing)


def _differences(studies: Sequence[tuple[str, StudyResults]]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    first, *others = [(name, _by_noun(study.results["gain"])) for name, study in studies]
    for name, gains in others:
        pairs = [(model, model) for model in first[1] if model in gains]
        if not pairs and len(first[1]) == len(gains) == 1:
            pairs = [(next(iter(first[1])), next(iter(gains)))]
        for ours, theirs in pairs:
            both = pd.concat([first[1][ours], gains[theirs]], axis=1, join="inner").to_numpy(float)
            if len(both):
                which = ours if ours == theirs else f"{ours} − {theirs}"
                found = paired(both[:, 0] - both[:, 1])
                rows.append({"studies": f"{first[0]} − {name}", "model": which, **found})
    table = pd.DataFrame(rows)
    if len(table):
        table["p"] = holm(table["p"].to_numpy(float))
        table = table.rename(columns={"p_permutation": "permutation p", "n": "nouns", "mean": "difference"})
    return table


def _by_noun(gains: pd.DataFrame) -> dict[str, pd.Series]:
    last = last_checkpoints(gains)
    return {str(model): frame.groupby("target")["gain"].mean() for model, frame in last.groupby("model", sort=True)}


def gains_figure(training: pd.DataFrame) -> Figure:
    """Gain over training, a colour per study and model."""
    figure = figure_of(6.4, 3.6)
    axes = figure.subplots()
    groups = training.groupby(["study", "model"], sort=False)
    for ((study, model), frame), colour in zip(groups, colours(), strict=False):
        band(axes, np.asarray(frame["step"]), frame, "gain", colour, f"{study}, {model}")
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set_ylabel("grounding gain G (nats)")
    over_steps(axes, training["step"])
    axes.legend(fontsize=8)
    return figure
