"""Which heads are selected, and are they the same in every example?"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from symground.analysis.heads import DENOMINATORS, KINDS
from symground.files import evenly
from symground.reports.figures import colours, figure_of, over_steps
from symground.reports.formats import told_apart
from symground.reports.hover import called
from symground.reports.sections.parts import (
    FigurePart,
    Section,
    StudyResults,
    TablePart,
    has_training,
    last_checkpoints,
)

#: The threshold of tables that do not say theirs, those of earlier versions.
_THRESHOLD = 0.30
_COMPARED = 200  # examples: pairs of them are counted


def heads(study: StudyResults) -> Section:
    """Counts of heads, their stability, the null of their shares, and how well flow predicts effects."""
    shares, swept = with_threshold(study.results["shares"]), study.results["sweep"]
    words = {"threshold": threshold_of(shares)}
    parts: list[FigurePart | TablePart] = []
    if not shares.empty:
        made, counts, common = study.analyze("saliency"), head_counts(shares), common_heads(shares)
        found = _of_last_two(study)
        parts += [
            *([FigurePart("head-counts", counts_figure(counts), made)] if has_training(counts) else []),
            TablePart("head-counts", counts, made, _at_some(counts)),
            TablePart("common-heads", common, made, common_shown(common)),
            *([TablePart("stability", stability(found, _examples(study)), made)] if len(found) else []),
            FigurePart("shares", shares_figure(shares), made, words),
            TablePart("shares", last_checkpoints(shares), made, _shares_shown(shares), words=words),
        ]
    if not swept.empty:
        made = study.analyze("sweep")
        parts.append(TablePart("strongest", swept, made, strongest_heads(swept)))
        both = flow_and_effect(shares, swept)
        if len(both):
            parts += [
                FigurePart("flow-effect", flow_figure(both), made, words),
                TablePart("flow-effect", explained(both), made, words=words),
            ]
    text = (
        "Flow is the absolute saliency |A ∘ ∂L/∂A| of a head, summed over positions. An aggregate head has at least "
        f"{words['threshold']} of its flow from the ENV noun into the prediction position. A gather head has at least "
        f"{words['threshold']} of its flow from the rest of the ENV utterance into the ENV noun. The share "
        "is of all flow into the same position (row), or of all flow of the head (matrix)."
    )
    missing = study.lacking(
        shares="heads, and their shares in mismatched examples", heads="the heads of each example, and their stability",
        sweep="every head alone",
    )  # fmt: skip
    return Section("heads", "Which heads?", text, parts, missing)


def with_threshold(shares: pd.DataFrame) -> pd.DataFrame:
    """Shares with the smallest share of an aggregate or gather head beside each."""
    told = shares["threshold"] if "threshold" in shares else pd.Series(np.nan, shares.index)
    return shares.assign(threshold=told.astype(float).fillna(_THRESHOLD))


def threshold_of(shares: pd.DataFrame) -> str:
    """The thresholds of the runs, in percent."""
    found = sorted(shares["threshold"].unique()) or [_THRESHOLD]
    return " or ".join(f"{100 * x:.3g} %" for x in found)


def _examples(study: StudyResults) -> int:
    nouns, contexts = study.config["nouns"], study.config["contexts"]
    assert isinstance(nouns, list)
    assert isinstance(contexts, list)
    return len(nouns) * len(contexts)


def _of_last_two(study: StudyResults) -> pd.DataFrame:
    """The heads of each run's last two checkpoints."""
    steps = study.results["shares"][["model", "seed", "step"]].drop_duplicates()
    kept = steps.sort_values("step").groupby(["model", "seed"]).tail(2)
    return study.results.at("heads", sorted(set(kept["step"]))).merge(kept, on=["model", "seed", "step"])


def head_counts(shares: pd.DataFrame) -> pd.DataFrame:
    """Heads per example and their mean layer, by run, step, kind and denominator."""
    keys = ["model", "seed", "step", "kind", "denominator"]
    weighted = shares.assign(of_layers=shares["selected"] * shares["layer"])
    grouped = weighted.groupby(keys)
    found = grouped[["selected", "of_layers"]].sum().assign(examples=grouped["examples"].first()).reset_index()
    layer = found.pop("of_layers") / found["selected"].where(found["selected"] > 0)
    found.insert(len(keys) + 1, "mean layer", layer)
    return found.rename(columns={"selected": "heads per example"})


def common_heads(shares: pd.DataFrame, most: int = 12) -> pd.DataFrame:
    """The heads found in most examples at each run's last checkpoint, by the share of the row."""
    last = last_checkpoints(shares)
    chosen = last[(last["denominator"] == "row") & (last["selected"] > 0)]
    keys = ["model", "seed", "kind"]
    table = chosen.sort_values("selected", ascending=False, kind="stable").groupby(keys, sort=True).head(most)
    table = table.sort_values([*keys, "selected"], ascending=[True, True, True, False], kind="stable")
    table = table[[*keys, "layer", "head", "selected", "share", "examples"]]
    return table.rename(columns={"selected": "found in", "share": "mean share"})


def common_shown(common: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`common_heads` for the page."""
    found = _in_order(common, ["model", "seed", "kind"], "found in") if len(common) else common["found in"]
    return common.assign(**{"found in": found})


def _at_some(counts: pd.DataFrame) -> pd.DataFrame:
    """Five checkpoints, evenly spread."""
    return counts[counts["step"].isin(evenly(sorted(counts["step"].unique()), 5))]


def strongest_heads(swept: pd.DataFrame, most: int = 8) -> pd.DataFrame:
    """The heads with the largest effects at each run's last swept checkpoint, and how well the estimate fits them."""
    last = last_checkpoints(swept)
    columns = {"effect": "effect, nats", "first_order": "first-order estimate"}
    table = last.sort_values("effect", ascending=False, kind="stable").groupby(["model", "seed"]).head(most)
    table = table.sort_values(["model", "seed"], kind="stable").rename(columns=columns)
    for name in columns.values():
        table[name] = _in_order(table, ["model", "seed"], name)
    fit = {key: frame["effect"].corr(frame["first_order"]) for key, frame in last.groupby(["model", "seed"])}
    table["correlation over all heads"] = [fit[key] for key in zip(table["model"], table["seed"], strict=True)]
    return table


def _in_order(table: pd.DataFrame, keys: list[str], name: str) -> pd.Series:
    """The column as text. In each group by ``keys``, which is in an order, values that differ are told apart."""
    return table.groupby(keys, sort=False)[name].transform(lambda of: pd.Series(told_apart(of.tolist()), of.index))


def stability(found: pd.DataFrame, examples: int) -> pd.DataFrame:
    """Overlaps of the sets of heads: a row per model, kind and denominator.

    Args:
        found: the results' table "heads".
        examples: their number. An example without a head has an empty set; a pair of two empty sets does not count.
    """
    rows = []
    last = last_checkpoints(found)
    for (model, kind, denominator), frame in last.groupby(["model", "kind", "denominator"], sort=True):
        between, over, counts, layers = [], [], [], []
        for seed, of_seed in frame.groupby("seed"):
            now = _sets(of_seed)
            drawn = sorted(now)[:: max(1, len(now) // _COMPARED)]
            between += [_jaccard(now[a], now[b]) for a, b in combinations(drawn, 2)]
            same = found[(found["model"] == model) & (found["seed"] == seed) & (found["kind"] == kind)]
            same = same[(same["denominator"] == denominator) & (same["step"] < of_seed["step"].max())]
            before = _sets(same[same["step"] == same["step"].max()])
            over += [_jaccard(now[a], before[a]) for a in now.keys() & before.keys()]
            counts.append(len(of_seed) / examples)
            layers.append(of_seed["layer"].mean())
        several = len(counts) > 1
        rows.append(
            {
                "model": model,
                "kind": kind,
                "share of": denominator,
                "overlap of examples": _mean(between),
                "overlap with the checkpoint before": _mean(over),
                "heads per example": _mean(counts),
                "sd over seeds": np.std(counts, ddof=1) if several else np.nan,
                "mean layer": _mean(layers),
                "sd of layer over seeds": np.std(layers, ddof=1) if several else np.nan,
                "seeds": len(counts),
                "examples": examples,
            }
        )
    return pd.DataFrame(rows)


def _sets(frame: pd.DataFrame) -> dict[int, frozenset[tuple[int, int]]]:
    pairs: dict[int, set[tuple[int, int]]] = {}
    for example, layer, head in zip(frame["example"], frame["layer"], frame["head"], strict=True):
        pairs.setdefault(int(example), set()).add((int(layer), int(head)))
    return {example: frozenset(own) for example, own in pairs.items()}


def _jaccard(a: frozenset[tuple[int, int]], b: frozenset[tuple[int, int]]) -> float:
    return len(a & b) / len(a | b)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else np.nan


def _shares_shown(shares: pd.DataFrame) -> pd.DataFrame:
    last = last_checkpoints(shares)
    rows = last[(last["denominator"] == "row") & (last["selected"] > 0.05)]
    rows = rows.sort_values(["model", "seed", "kind", "share"], ascending=[True, True, True, False], kind="stable")
    rows = rows.assign(share=_in_order(rows, ["model", "seed", "kind"], "share") if len(rows) else rows["share"])
    wanted = ["model", "seed", "step", "kind", "layer", "head", "share", "null", "null_95", "selected", "null_selected"]
    names = {
        "share": "mean share", "null": "of mismatched", "null_95": "passed by 5 % of mismatched",
        "selected": f"reaches {threshold_of(rows)} in", "null_selected": "of mismatched in",
    }  # fmt: skip
    return rows[[*wanted, "examples"]].rename(columns=names)


def flow_and_effect(shares: pd.DataFrame, swept: pd.DataFrame) -> pd.DataFrame:
    """Each head's mean aggregate share of the row and its effect when silenced alone, if a checkpoint has both."""
    if shares.empty or swept.empty:
        return pd.DataFrame()
    own = shares[(shares["kind"] == "aggregate") & (shares["denominator"] == "row")]
    keys = ["model", "seed", "step", "layer", "head"]
    both = own.merge(swept.drop(columns="examples", errors="ignore"), on=keys)
    return last_checkpoints(both[[*keys, "share", "effect", "examples", "threshold"]])


def explained(both: pd.DataFrame) -> pd.DataFrame:
    """How well flow predicts effects: a row per run in the table of :func:`flow_and_effect`."""
    rows = []
    for (model, seed, step), frame in both.groupby(["model", "seed", "step"], sort=True):
        alike = np.ptp(frame["share"]) == 0 or np.ptp(frame["effect"]) == 0
        correlation, p = (np.nan, np.nan) if alike else stats.spearmanr(frame["share"], frame["effect"])
        rises, named = frame["effect"].clip(lower=0), frame["share"] >= frame["threshold"]
        rows.append(
            {
                "model": model,
                "seed": seed,
                "step": step,
                "correlation": correlation,
                "p": p,
                "examples": int(frame["examples"].iloc[0]),
                "named heads": int(named.sum()),
                "heads": len(frame),
                "share of the effect": rises[named].sum() / rises.sum() if rises.sum() > 0 else np.nan,
                "largest effect of another": rises[~named].max(),
            }
        )
    return pd.DataFrame(rows)


def counts_figure(counts: pd.DataFrame) -> Figure:
    """Heads per example over training; a panel per kind, a colour per model, a dash per denominator."""
    figure = figure_of(7.6, 2.9)
    panels = figure.subplots(1, len(KINDS), squeeze=False)[0]
    models = sorted(counts["model"].unique())
    for axes, kind in zip(panels, KINDS, strict=True):
        for model, colour in zip(models, colours(), strict=False):
            for denominator, dash in zip(DENOMINATORS, ("-", "--"), strict=True):
                part = counts[(counts["kind"] == kind) & (counts["denominator"] == denominator)]
                mean = part[part["model"] == model].groupby("step")["heads per example"].mean()
                label = model if denominator == "row" else None
                (line,) = axes.plot(mean.index, mean, dash, color=colour, linewidth=1.3, label=label)
                called(line, f"{model}, share of the {denominator}")
        axes.set(title=f"{kind} heads", ylim=(0, None))
        over_steps(axes, counts["step"])
    panels[0].set_ylabel("heads per example")
    panels[0].legend()
    return figure


def shares_figure(shares: pd.DataFrame) -> Figure:
    """Mean shares in matched against mismatched examples, a point per head; a panel per model, its first seed only."""
    last = last_checkpoints(shares)
    rows = last[last["denominator"] == "row"]
    models = sorted(rows["model"].unique())
    figure = figure_of(3.2 * len(models) + 0.6, 3.1)
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        of_model = rows[rows["model"] == model]
        of_model = of_model[of_model["seed"] == of_model["seed"].min()]
        for kind, colour in zip(KINDS, colours(), strict=False):
            part = of_model[of_model["kind"] == kind]
            points = axes.plot(part["null"], part["share"], "o", color=colour, markersize=4, alpha=0.8, label=kind)
            called(points[0], f"{kind} share", _names(part))
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=0.8)
        for threshold in of_model["threshold"].unique():
            axes.axhline(threshold, color="#888888", linewidth=0.8, linestyle="--")
            axes.axvline(threshold, color="#888888", linewidth=0.8, linestyle="--")
        axes.set(title=model, xlabel="share, mismatched", xlim=(0, 1), ylim=(0, 1))
    panels[0].set_ylabel("share, matched")
    panels[0].legend(loc="upper left")
    return figure


def _names(heads: pd.DataFrame) -> list[str]:
    several = heads["seed"].nunique() > 1
    rows = zip(heads["seed"], heads["layer"], heads["head"], strict=True)
    return [f"{f'seed {seed}, ' if several else ''}layer {layer}, head {head}" for seed, layer, head in rows]


def flow_figure(both: pd.DataFrame) -> Figure:
    """Effects against shares, a colour per model."""
    figure = figure_of(5.2, 3.1)
    axes = figure.subplots()
    for (model, frame), colour in zip(both.groupby("model", sort=True), colours(), strict=False):
        points = axes.plot(frame["share"], frame["effect"], "o", color=colour, markersize=4, alpha=0.8, label=model)
        called(points[0], str(model), _names(frame))
    for threshold in both["threshold"].unique():
        axes.axvline(threshold, color="#888888", linewidth=0.8, linestyle="--")
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set(xlabel="mean aggregate share of the row", ylabel="effect alone (nats)", xlim=(0, 1))
    axes.legend()
    return figure
