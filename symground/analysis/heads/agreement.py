"""Stability of the selected heads: agreement between halves of the contexts and between examples."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from symground.analysis.checks import check_trace
from symground.analysis.heads.finding import DENOMINATORS, head_shares, kinds_of
from symground.errors import integer, number

#: The largest number of examples of which every pair is compared.
_COMPARED = 200


def stability(traced: xr.Dataset, threshold: float = 0.30, draws: int = 200, seed: int = 0) -> pd.DataFrame:
    """How far the heads of a kind agree between halves of the contexts, and between examples.

    Args:
        traced: from :func:`symground.trace`, of probes or questions about images, with several contexts.
        threshold: the smallest share of flow.
        draws: how often the contexts are halved, at random.
        seed: of the halves.

    Returns:
        A DataFrame with a row per kind and denominator. Its columns:

        - kind, denominator;
        - rank: Spearman's correlation of the mean shares of all heads in the two halves; rank_low, rank_high: 95 % of
          the draws;
        - overlap: the Jaccard overlap of the heads whose mean share reaches the threshold; overlap_low, overlap_high:
          95 % of the draws; NaN if neither half has such a head;
        - between: the mean overlap of the head sets of two examples;
        - heads: the number of heads whose mean share over all examples reaches the threshold;
        - heads_per_example, examples, contexts, draws.

    Raises:
        ValueError: fewer than two contexts, or fewer than one draw.
    """
    check_trace(traced, "traced")
    threshold = number("threshold", threshold, "(0, 1]")
    draws, seed = integer("draws", draws, 1), integer("seed", seed, 0)
    if "context" not in traced.coords or "flow" not in traced:
        raise ValueError(
            "traced: expected a trace of probes or of questions about images, with the flow of heads; of ids alone "
            "nothing tells their contexts"
        )
    contexts = np.unique(traced.context.values)
    if len(contexts) < 2:
        raise ValueError(f"traced: expected at least two contexts, got {len(contexts)}")
    rng = np.random.default_rng(seed)
    halves = [
        np.isin(traced.context.values, rng.permutation(contexts)[: len(contexts) // 2]) for _ in range(draws)
    ]  # fmt: skip
    # At random, since a file of questions may alternate regularly between kinds.
    compared = rng.permutation(traced.sizes["example"])[:_COMPARED]
    there = np.isfinite(traced.matrix_total.isel(example=0).values).ravel()  # NaN: heads that only wider layers have
    rows = []
    for kind in kinds_of(traced):
        for denominator in DENOMINATORS:
            shares = head_shares(traced, kind, denominator).values.reshape(traced.sizes["example"], -1)[:, there]
            means = [(shares[half].mean(0), shares[~half].mean(0)) for half in halves]
            sets = shares >= threshold
            rows.append(
                {
                    "kind": kind, "denominator": denominator,
                    **_spread("rank", [_rank(*pair) for pair in means]),
                    **_spread("overlap", [_overlap(a >= threshold, b >= threshold) for a, b in means]),
                    "between": _between(sets[compared]), "heads": int((shares.mean(0) >= threshold).sum()),
                    "heads_per_example": sets.sum(1).mean(), "examples": len(shares), "contexts": len(contexts),
                    "draws": draws,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _rank(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return np.nan if np.ptp(a) == 0 or np.ptp(b) == 0 else float(stats.spearmanr(a, b).statistic)


def _overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    either = (a | b).sum()
    return float((a & b).sum() / either) if either else np.nan


def _between(sets: NDArray[np.bool_]) -> float:
    found = [_overlap(a, b) for a, b in combinations(sets, 2)]
    known = [value for value in found if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def _spread(name: str, values: list[float]) -> dict[str, float]:
    known = np.array([value for value in values if not np.isnan(value)])
    if not len(known):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
    low, high = np.percentile(known, (2.5, 97.5))
    return {name: float(known.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
