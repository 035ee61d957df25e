"""The study's tables in the form people read, from the tidy results."""

from __future__ import annotations

import numpy as np
import pandas as pd

from symground.analysis import gain_interval
from symground.analysis.heads import DENOMINATORS, KINDS
from symground.analysis.statistics import holm

#: The study's interventions: 12-layer GPT-2 on CHILDES (arXiv 2510.13796).
STUDY_INTERVENTIONS = pd.DataFrame(
    [
        (5000, 2.28, 7.38, 6.51, 6.39, 6.38),
        (10000, 5.09, 7.28, 5.86, 5.29, 5.30),
        (20000, 6.71, 7.52, 5.62, 4.76, 4.77),
    ],
    columns=["step", "heads per example", "mean layer", "intervened", "control", "original"],
)


def number(value: float) -> str:
    """Two decimals, and no minus before a zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def final_gains(gains: pd.DataFrame) -> pd.DataFrame:
    """Matched, mismatched and gain of every run's last checkpoint, with the gain's interval over nouns."""
    rows = []
    for (model, seed), frame in gains.groupby(["model", "seed"]):
        last = frame[frame["step"] == frame["step"].max()]
        mean, low, high = gain_interval(last)
        above = frame.groupby("step")["gain"].mean()
        reached = above.index[above > 1]
        rows.append(
            {
                "model": model,
                "seed": seed,
                "step": int(last["step"].iloc[0]),
                "matched": last["matched"].mean(),
                "mismatched": last["mismatched"].mean(),
                "gain": mean,
                "95 % interval": f"[{number(low)}, {number(high)}]",
                "first step with a gain above 1 nat": str(reached[0]) if len(reached) else "none",
                "nouns": len(last),
            }
        )
    return pd.DataFrame(rows)


def head_counts(heads: pd.DataFrame, examples: int) -> pd.DataFrame:
    """Heads per example and their mean layer, by run, step, kind and denominator."""
    keys = ["model", "seed", "step", "kind", "denominator"]
    grouped = heads.groupby(keys)
    table = pd.DataFrame({"heads per example": grouped.size() / examples, "mean layer": grouped["layer"].mean()})
    steps = heads[keys[:3]].drop_duplicates().itertuples(index=False)
    every = [(*step, kind, denominator) for step in steps for kind in KINDS for denominator in DENOMINATORS]
    table = table.reindex(pd.MultiIndex.from_tuples(sorted(every), names=keys))  # none found is a row of 0
    return table.fillna({"heads per example": 0.0}).reset_index()


def common_heads(heads: pd.DataFrame, examples: int, most: int = 12) -> pd.DataFrame:
    """At each run's last checkpoint, the heads that are found in most examples (row denominator)."""
    last = heads["step"] == heads.groupby(["model", "seed"])["step"].transform("max")
    chosen = heads[last & (heads["denominator"] == "row")]
    grouped = chosen.groupby(["model", "seed", "kind", "layer", "head"])
    table = pd.DataFrame({"found in": grouped.size() / examples, "mean share": grouped["share"].mean()}).reset_index()
    table = table.sort_values("found in", ascending=False, kind="stable")
    table = table.groupby(["model", "seed", "kind"], sort=True).head(most)
    return table.sort_values(["model", "seed", "kind", "found in"], ascending=[True, True, True, False])


def _corrected(interventions: pd.DataFrame) -> pd.Series:
    """Holm-corrected p over all rows of a run: its checkpoints, kinds, denominators and spans."""
    by_run = interventions.groupby(["model", "seed"])["p"]
    return by_run.transform(lambda p: holm(p.to_numpy(dtype=float)))


def intervention_table(interventions: pd.DataFrame) -> pd.DataFrame:
    """The interventions in the study's form; *** p < 0.001, ** p < 0.01, * p < 0.05, paired over examples.

    p is corrected for the rows of a run (Holm).
    """
    if interventions.empty:
        return pd.DataFrame()
    p = _corrected(interventions)
    stars = np.select([p < 0.001, p < 0.01, p < 0.05], ["***", "**", "*"], "")
    return pd.DataFrame(
        {
            "model": interventions["model"],
            "seed": interventions["seed"],
            "step": interventions["step"],
            "kind": interventions["kind"],
            "share of": interventions["denominator"],
            "span": interventions["span"],
            "heads per example": interventions["heads_per_example"],
            "mean layer": interventions["mean_layer"],
            "intervened": interventions["intervened"].map(number) + stars,
            "control": interventions["control"].map(number) + " ± " + interventions["control_sd"].map(number),
            "original": interventions["original"],
            "examples": interventions["examples"],
            "draws": interventions["draws"],
            "too few controls": interventions["short"],
        }
    )


#: Column of the results → what it is called in the report.
_MEASURES = {"": "matched", "mismatched_": "mismatched", "gain_": "gain", "context_": "rest of the context"}


def grounds_or_matters(interventions: pd.DataFrame) -> pd.DataFrame:
    """What silencing changes beside the matched surprisal: each measure's change, random heads' change in brackets.

    Empty where the results are of a version that did not measure it.
    """
    if "gain_intervened" not in interventions:
        return pd.DataFrame()
    rows = interventions.dropna(subset="gain_intervened")
    chosen = {"selection": rows["selection"], "positions": rows["positions"], "instead": rows["mode"]}
    changes = {}
    for prefix, name in _MEASURES.items():
        before = rows[f"{prefix}original"]
        ours, random = (rows[f"{prefix}{column}"] - before for column in ("intervened", "control"))
        changes[name] = ours.map(_signed) + " (" + random.map(_signed) + ")"
    d = rows["d"].map(number) + " [" + rows["d_low"].map(number) + ", " + rows["d_high"].map(number) + "]"
    return pd.DataFrame(
        {
            "model": rows["model"],
            "seed": rows["seed"],
            "step": rows["step"],
            "kind": rows["kind"],
            "share of": rows["denominator"],
            "span": rows["span"],
            **{
                name: values
                for name, values in chosen.items()
                if values.nunique() > 1 or values.iloc[0] != _USUAL[name]
            },
            **changes,
            "d of matched": d.where(rows["d"].notna(), "–"),
        }
    )


_USUAL = {"selection": "example", "positions": "all", "instead": "zero"}


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"


def strongest_heads(swept: pd.DataFrame, most: int = 8) -> pd.DataFrame:
    """The heads of each run's last swept checkpoint that matter most alone, and how well the estimate tells them."""
    last = swept[swept["step"] == swept.groupby(["model", "seed"])["step"].transform("max")]
    columns = {"effect": "effect, nats", "first_order": "first-order estimate"}
    table = last.sort_values("effect", ascending=False, kind="stable").groupby(["model", "seed"]).head(most)
    table = table.sort_values(["model", "seed"], kind="stable").rename(columns=columns)
    fit = {key: frame["effect"].corr(frame["first_order"]) for key, frame in last.groupby(["model", "seed"])}
    table["correlation over all heads"] = [fit[key] for key in zip(table["model"], table["seed"], strict=True)]
    return table
