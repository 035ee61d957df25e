"""The study's tables in the form people read, from the tidy results."""

from __future__ import annotations

import numpy as np
import pandas as pd

from symground.analysis import gain_interval
from symground.analysis.heads import DENOMINATORS, KINDS

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


def intervention_table(interventions: pd.DataFrame) -> pd.DataFrame:
    """The interventions in the study's form; *** p < 0.001, ** p < 0.01, * p < 0.05, paired over examples."""
    if interventions.empty:
        return pd.DataFrame()
    stars = np.select(
        [interventions["p"] < 0.001, interventions["p"] < 0.01, interventions["p"] < 0.05], ["***", "**", "*"], ""
    )
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
