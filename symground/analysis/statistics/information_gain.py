"""Grounding information gain: the reduction of a word's surprisal by its matching ENV noun."""

from __future__ import annotations

import pandas as pd

from symground.analysis.checks import check_frame
from symground.analysis.statistics.intervals import bootstrap_interval
from symground.errors import integer, number


def gain(scores: pd.DataFrame, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """G(v) = mean over contexts n and nouns u ≠ v of s(v:<LAN> | c_n(u:<ENV>)) - s(v:<LAN> | c_n(v:<ENV>)).

    Args:
        scores: from :func:`symground.score`: context, env, target, surprisal (nats).
        level: of the intervals.
        seed: of the bootstrap.

    Returns:
        A DataFrame with a row per target: target; matched and mismatched, mean surprisals in nats; gain, nats; and the
        bootstrap interval of each of the three (BCa, resampling contexts), matched_low, matched_high and so on. The
        intervals are NaN if there is only one context.

    Raises:
        ValueError: a column is missing, or a target has no matched or no mismatched score.

    Source: arXiv 2510.13796, the grounding information gain; Efron 1987 (BCa).
    """
    _check_columns(scores)
    level, seed = number("level", level, "(0, 1)"), integer("seed", seed, 0)
    if scores["surprisal"].isna().any():
        raise ValueError(f"scores: {int(scores['surprisal'].isna().sum())} surprisals are NaN")
    is_match = scores["env"] == scores["target"]
    table = pd.DataFrame(
        {
            "matched": scores[is_match].groupby("target")["surprisal"].mean(),
            "mismatched": scores[~is_match].groupby("target")["surprisal"].mean(),
        }
    )
    incomplete = table.index[table.isna().any(axis=1)]
    if len(incomplete):
        raise ValueError(f"scores: no matched or no mismatched score for {', '.join(map(str, incomplete))}")
    table["gain"] = table["mismatched"] - table["matched"]
    matched, mismatched = _by_context(scores, is_match), _by_context(scores, ~is_match)
    for name, by_context in (("matched", matched), ("mismatched", mismatched), ("gain", mismatched - matched)):
        by_context = by_context.loc[table.index]
        # Targets that were scored in the same contexts (mostly all targets) share one bootstrap.
        for _, alike in by_context.groupby(by_context.isna().apply(tuple, axis=1)):
            low, high = bootstrap_interval(alike.dropna(axis=1).to_numpy(dtype=float), level, seed)
            table.loc[alike.index, f"{name}_low"], table.loc[alike.index, f"{name}_high"] = low, high
    return table.rename_axis("target").reset_index()


def gain_by_context(scores: pd.DataFrame) -> pd.DataFrame:
    """Matched and mismatched surprisal and their difference for each target and context.

    Args:
        scores: as for :func:`gain`; optional columns model, seed and step are kept.

    Returns:
        A DataFrame with a row per target and context: model, seed and step if ``scores`` has them, context, target,
        matched, mismatched, gain (nats).

    Raises:
        ValueError: a column is missing.
    """
    _check_columns(scores)
    keys = [name for name in ("model", "seed", "step") if name in scores] + ["context", "target"]
    same = scores["env"] == scores["target"]
    matched, others = (scores[part].groupby(keys)["surprisal"].mean() for part in (same, ~same))
    table = pd.DataFrame({"matched": matched, "mismatched": others})
    return table.assign(gain=table["mismatched"] - table["matched"]).reset_index()


def _check_columns(scores: pd.DataFrame) -> None:
    check_frame(scores, "scores", ("context", "env", "target", "surprisal"), "symground.score(model, probes)")


def _by_context(scores: pd.DataFrame, chosen: pd.Series) -> pd.DataFrame:
    """Mean surprisal with a row per target and a column per context."""
    return scores[chosen].pivot_table("surprisal", "target", "context", aggfunc="mean")


def gain_interval(gains: pd.DataFrame, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean gain over nouns and its bootstrap interval (BCa, resampling nouns), in nats: (mean, low, high).

    The interval of a single noun is its gain.
    """
    check_frame(gains, "gains", ("gain",), "symground.gain(scores)")
    level, seed = number("level", level, "(0, 1)"), integer("seed", seed, 0)
    values = gains["gain"].to_numpy(dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, mean, mean
    low, high = bootstrap_interval(values[None], level, seed)
    return mean, float(low[0]), float(high[0])
