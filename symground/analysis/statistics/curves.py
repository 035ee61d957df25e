"""Behaviour over training: matched and mismatched surprisal and their difference, with intervals and tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from symground.analysis.statistics.intervals import bootstrap_interval, holm, over_few, paired
from symground.errors import integer

MEASURES = ("matched", "mismatched", "gain")


def over_training(gains: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean surprisals and gain of each model and checkpoint.

    Args:
        gains: the results' table "gain": model, seed, step, target, matched, mismatched, gain (nats).
        seed: of the bootstrap and of the permutations.

    Returns:
        A DataFrame with a row per model and checkpoint. Its columns:

        - model, step;
        - matched, mismatched, gain: means over nouns and seeds, nats;
        - NAME_low, NAME_high for each of these three: 95 % interval over nouns (BCa, each noun its mean over seeds);
        - NAME_seed_low, NAME_seed_high: 95 % interval over seeds (Student's t; NaN for one seed);
        - p, p_permutation: paired t-test and paired permutation test of the gain over nouns, which are the independent
          units; p_holm: p corrected for the model's checkpoints; d: Cohen's d;
        - nouns, seeds: their numbers.
    """
    seed = integer("seed", seed, 0)
    rows = []
    for (model, step), frame in gains.groupby(["model", "step"], sort=True):
        by_noun, by_seed = (frame.groupby(unit)[list(MEASURES)].mean() for unit in ("target", "seed"))
        row: dict[str, Any] = {"model": model, "step": step}
        lows, highs = bootstrap_interval(by_noun.to_numpy(float).T, seed=seed)
        for name, low, high in zip(MEASURES, lows, highs, strict=True):
            _, seed_low, seed_high = over_few(by_seed[name].to_numpy(float))
            row |= {
                name: by_noun[name].mean(), f"{name}_low": low, f"{name}_high": high,
                f"{name}_seed_low": seed_low, f"{name}_seed_high": seed_high,
            }  # fmt: skip
        tested = paired(by_noun["gain"].to_numpy(float), seed)
        row |= {name: tested[name] for name in ("p", "p_permutation", "d")}
        rows.append({**row, "nouns": len(by_noun), "seeds": len(by_seed)})
    table = pd.DataFrame(rows)
    table.insert(list(table.columns).index("p") + 1, "p_holm", np.nan)
    for _, of_model in table.groupby("model"):
        table.loc[of_model.index, "p_holm"] = holm(of_model["p"].to_numpy(float))
    return table
