"""Grounding information gain: how much a matching ENV noun lowers the surprisal of its word."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats


def gain(scores: pd.DataFrame) -> pd.DataFrame:
    """G(v) = mean over contexts n and nouns u ≠ v of s(v:<LAN> | c_n(u:<ENV>)) - s(v:<LAN> | c_n(v:<ENV>)).

    Args:
        scores: from :func:`symground.score`: context, env, target, surprisal (nats).

    Returns:
        A DataFrame, a row per target: target, matched, mismatched (mean surprisals, nats), gain (nats).

    Raises:
        ValueError: a column is missing, or a target has no matched or no mismatched score.

    Source: arXiv 2510.13796, the grounding information gain.
    """
    for column in ("context", "env", "target", "surprisal"):
        if column not in scores:
            raise ValueError(f"scores: expected a column {column!r}, got {list(scores.columns)}")
    if scores["surprisal"].isna().any():
        raise ValueError(f"scores: {int(scores['surprisal'].isna().sum())} surprisals are NaN")
    is_match = scores["env"] == scores["target"]
    table = pd.DataFrame(
        {
            "matched": scores[is_match].groupby("target", sort=False)["surprisal"].mean(),
            "mismatched": scores[~is_match].groupby("target", sort=False)["surprisal"].mean(),
        }
    )
    incomplete = table.index[table.isna().any(axis=1)]
    if len(incomplete):
        raise ValueError(f"scores: no matched or no mismatched score for {', '.join(map(str, incomplete))}")
    table["gain"] = table["mismatched"] - table["matched"]
    return table.rename_axis("target").reset_index()


def gain_interval(gains: pd.DataFrame, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean gain over nouns and its bootstrap interval (BCa, resampling nouns), in nats: (mean, low, high)."""
    values = gains["gain"].to_numpy(dtype=float)
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean()), float(values.mean())
    rng = np.random.default_rng(seed)
    interval = stats.bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=2000, rng=rng
    ).confidence_interval
    return float(values.mean()), float(interval.low), float(interval.high)
