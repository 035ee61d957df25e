"""Does the scene lower the surprisal of its word, and from which step on?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from symground.analysis.statistics import emergence, mixed_effects, resampled
from symground.data.words import cdi_categories
from symground.reports.figures import MATCHED, MISMATCHED, band, colours, figure_of, over_steps
from symground.reports.formats import interval, with_interval
from symground.reports.hover import called
from symground.reports.sections.parts import (
    FigurePart,
    Section,
    StudyResults,
    TablePart,
    has_training,
    last_checkpoints,
)


def behaviour(study: StudyResults, ages: Mapping[str, float] | None = None) -> Section:
    """Curves, emergence steps, and their tests."""
    gains, contexts = study.results["gain"], study.results["contexts"]
    title = "Does the word follow from the scene?"
    text = (
        "Surprisal of a spoken noun, in nats, if the scene has the same noun (matched) and if it has another one "
        "(mismatched). The grounding information gain, or gain, is mismatched minus matched surprisal."
    )
    of_contexts = "mixed-effects models, which need the gain of each context"
    lacking = study.lacking(
        gain="matched and mismatched surprisal",
        contexts=of_contexts if study.pretrained else f"emergence steps and {of_contexts}",
        surprisal="the surprisal of each word after each scene",
    )
    if gains.empty:
        return Section("behaviour", title, text, (), lacking)
    training, made = study.training, study.analyze("surprisal")
    seeds = int(training["seeds"].max())
    over = f"95 % intervals over {seeds} seeds (Student's t)" if seeds > 1 else "95 % intervals over nouns (BCa)"
    bands = {"bands": over}
    emerged, missing = (None, []) if study.pretrained else _emerged(contexts)
    missing += lacking
    parts: list[FigurePart | TablePart] = [TablePart("final", _final(training), made, _final_shown(training))]
    if has_training(training):
        parts += [
            FigurePart("surprisal", surprisal_curves(training), made, bands),
            FigurePart("gain", gain_curves(training), made, bands),
        ]
    if emerged is not None:
        wholes = emerged[emerged["level"] != "noun"]
        parts.append(TablePart("emergence", emerged, made, _emergence_shown(wholes)))
        if has_training(training) and np.isfinite(emerged.loc[emerged["level"] == "noun", "step"]).any():
            parts.append(FigurePart("emergence", emergence_figure(emerged), made))
        if ages:
            found = acquisition(emerged, ages)
            if len(found):
                parts.append(TablePart("acquisition", found, made))
    last = last_checkpoints(gains)
    parts.append(TablePart("nouns", _nouns(last, emerged), made))
    mixed = _mixed(contexts)
    if len(mixed):
        parts.append(TablePart("mixed", mixed, made))
    parts.append(TablePart("training", training, made, _training_shown(training)))
    if seeds == 1 and not study.pretrained:
        missing = [*missing, "intervals over seeds: there is one seed only"]
    return Section("behaviour", title, text, parts, missing)


def _emerged(contexts: pd.DataFrame) -> tuple[pd.DataFrame | None, list[str]]:
    if contexts.empty:
        return None, []
    try:
        return emergence(contexts), []
    except ValueError as error:
        return None, [f"emergence steps: {error}"]


def _final(training: pd.DataFrame) -> pd.DataFrame:
    return last_checkpoints(training, "model")


def _final_shown(training: pd.DataFrame) -> pd.DataFrame:
    rows = _final(training)
    return pd.DataFrame(
        {
            "model": rows["model"], "step": rows["step"], "matched": rows["matched"], "mismatched": rows["mismatched"],
            "gain": rows["gain"],
            "over nouns": [interval(*x) for x in zip(rows["gain_low"], rows["gain_high"], strict=True)],
            "over seeds": [interval(*x) for x in zip(rows["gain_seed_low"], rows["gain_seed_high"], strict=True)],
            "p": rows["p_holm"], "permutation p": rows["p_permutation"], "d": rows["d"], "nouns": rows["nouns"],
            "seeds": rows["seeds"],
        }
    )  # fmt: skip


def _training_shown(training: pd.DataFrame) -> pd.DataFrame:
    shown = {"model": training["model"], "step": training["step"]}
    for name in ("matched", "mismatched", "gain"):
        columns = (training[name], training[f"{name}_low"], training[f"{name}_high"])
        shown[name] = pd.Series([with_interval(*x) for x in zip(*columns, strict=True)], index=training.index)
    return pd.DataFrame({**shown, "p": training["p_holm"], "nouns": training["nouns"], "seeds": training["seeds"]})


def _emergence_shown(wholes: pd.DataFrame) -> pd.DataFrame:
    frame = wholes.rename(columns={"level": "of", "unit": "which", "count": "nouns"}).sort_values(["of", "step"])
    frame[["step", "low", "high"]] = frame[["step", "low", "high"]].round()
    return frame.sort_values(["model", "of", "step"], ascending=[True, False, True])


def _nouns(last: pd.DataFrame, emerged: pd.DataFrame | None) -> pd.DataFrame:
    columns = ["matched", "mismatched", "gain", "gain_low", "gain_high"]
    table = last.reindex(columns=["model", "target", *columns]).groupby(["model", "target"])[columns].mean()
    table["seeds"] = last.groupby(["model", "target"])["seed"].nunique()
    table = table.reset_index().rename(columns={"target": "noun", "gain_low": "low", "gain_high": "high"})
    known = cdi_categories()
    table.insert(2, "category", [known.get(noun, "other") for noun in table["noun"]])
    if emerged is not None:
        of_noun = emerged[emerged["level"] == "noun"][["model", "unit", "step"]]
        of_noun = of_noun.rename(columns={"unit": "noun", "step": "emergence step"}).round()
        table = table.merge(of_noun, how="left", on=["model", "noun"])
    return table.sort_values(["model", "gain"], ascending=[True, False], kind="stable", ignore_index=True)


def _mixed(contexts: pd.DataFrame) -> pd.DataFrame:
    rows = []
    if not contexts.empty:
        for model, of_model in last_checkpoints(contexts).groupby("model", sort=True):
            if of_model["target"].nunique() > 1:
                rows.append({"model": model, "step": int(of_model["step"].max()), **mixed_effects(of_model)})
    table = pd.DataFrame(rows)
    return table.rename(columns=lambda name: name.replace("sd_", "sd ").replace("target", "noun"))


def acquisition(emerged: pd.DataFrame, ages: Mapping[str, float]) -> pd.DataFrame:
    """Spearman's correlation of emergence steps with ages of acquisition, a row per model.

    Args:
        emerged: from :func:`symground.analysis.emergence`.
        ages: noun → months, from :func:`symground.data.words.age_of_acquisition`.
    """
    rows = []
    for model, frame in emerged[emerged["level"] == "noun"].groupby("model", sort=True):
        known = frame[frame["unit"].isin(ages)]
        steps, months = known["step"].to_numpy(float), np.array([ages[noun] for noun in known["unit"]])
        if len(known) < 4 or len(set(steps)) < 2:
            continue
        found = stats.spearmanr(steps, months)
        ranks = np.stack([stats.rankdata(steps), stats.rankdata(months)], -1)
        low, high = resampled(ranks, _correlation)
        rows.append(
            {
                "model": model,
                "correlation": found.statistic,
                "low": low[0],
                "high": high[0],
                "p": found.pvalue,
                "nouns": len(known),
                "seeds": int(known["seeds"].max()),
                "never emerged": int(np.isinf(steps).sum()),
            }
        )
    return pd.DataFrame(rows)


def _correlation(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M,n,2] → [M,1]: correlations of ranks, which are computed again in each resample."""
    x, y = stats.rankdata(rows[..., 0], axis=1), stats.rankdata(rows[..., 1], axis=1)
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return found[:, None]


def surprisal_curves(training: pd.DataFrame) -> Figure:
    """Matched and mismatched surprisal over training, a panel per model, from the table of `over_training`."""
    models = sorted(training["model"].unique())
    figure = figure_of(3.2 * len(models) + 1.2, 3.1)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        frame = training[training["model"] == model]
        for column, colour in (("matched", MATCHED), ("mismatched", MISMATCHED)):
            band(axes, frame["step"], frame, column, colour, column)
        axes.set_title(model)
        over_steps(axes, frame["step"])
    panels[0].set_ylabel("surprisal (nats)")
    panels[0].legend()
    return figure


def gain_curves(training: pd.DataFrame) -> Figure:
    """Gain over training, a line per model."""
    figure = figure_of(5.2, 3.1)
    axes = figure.subplots()
    for model, colour in zip(sorted(training["model"].unique()), colours(), strict=False):
        frame = training[training["model"] == model]
        band(axes, frame["step"], frame, "gain", colour, model)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set_ylabel("grounding gain G (nats)")
    over_steps(axes, training["step"])
    axes.legend()
    return figure


def emergence_figure(emerged: pd.DataFrame) -> Figure:
    """A point per noun, and a row per category with its mean's step; a panel per model in which a noun emerges."""
    known = cdi_categories()
    nouns = emerged[(emerged["level"] == "noun") & np.isfinite(emerged["step"])]
    nouns = nouns.assign(category=[known.get(noun, "other") for noun in nouns["unit"]])
    models, categories = sorted(nouns["model"].unique()), sorted(nouns["category"].unique(), reverse=True)
    figure = figure_of(3.6 * len(models) + 1.6, 1.0 + 0.32 * len(categories))
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    wholes = emerged[emerged["level"] == "category"].set_index(["model", "unit"])
    for axes, model in zip(panels, models, strict=True):
        for row, category in enumerate(categories):
            own = nouns[(nouns["model"] == model) & (nouns["category"] == category)].sort_values("step")
            spread = np.linspace(-0.22, 0.22, len(own)) if len(own) > 1 else np.zeros(len(own))
            points = axes.plot(own["step"], row + spread, ".", color=MATCHED, markersize=5, alpha=0.7)
            called(points[0], "noun", own["unit"].tolist())
            if (model, category) in wholes.index:
                whole = wholes.loc[(model, category)]
                low, high = (whole[end] if np.isfinite(whole[end]) else whole["step"] for end in ("low", "high"))
                if np.isfinite(whole["step"]):
                    axes.hlines(row, low, high, color=MISMATCHED, linewidth=2)
                    mark = axes.plot(whole["step"], row, "|", color=MISMATCHED, markersize=12, markeredgewidth=2)
                    called(mark[0], "mean of the category", [f"95 % interval [{low:,.0f}, {high:,.0f}]"])
        axes.set(title=model, xlabel="emergence step")
        axes.set_yticks(range(len(categories)), [category.replace("_", " ") for category in categories])
    return figure
