"""The emergence step of the link for each noun, category and model: from it on the gain stays above a threshold."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from symground.analysis.statistics.intervals import bootstrap
from symground.data.words import cdi_categories
from symground.errors import integer, number

#: Gain in nats above which a link counts as learnt.
LEARNT = 1.0
_RESAMPLES = 1000


def emergence(
    gains: pd.DataFrame,
    threshold: float = LEARNT,
    level: float = 0.95,
    seed: int = 0,
    categories: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """The step from which the gain stays above ``threshold``, interpolated linearly between checkpoints.

    Args:
        gains: the results' table "contexts": model, seed, step, context, target, gain (nats).
            :func:`symground.analysis.gain_by_context` computes it from scores.
        threshold: of the gain, nats.
        level: of the intervals.
        seed: of the bootstrap.
        categories: noun → category; None takes the MacArthur-Bates CDI's.

    Returns:
        A DataFrame with a row per model and unit. Its columns:

        - model; level: "noun", "category" or "model"; unit: its name;
        - step: the emergence step, infinite if the gain does not stay above the threshold until the end;
        - low, high: its bootstrap interval (percentiles), over contexts and seeds for a noun, over nouns for a category
          or model; NaN if there is only one of them;
        - count: the number of curves that are resampled; seeds.

    Raises:
        ValueError: a column is missing, or the runs of a model do not have the same checkpoints.
    """
    threshold, level, seed = number("threshold", threshold), number("level", level, "(0, 1)"), integer("seed", seed, 0)
    for column in ("model", "seed", "step", "context", "target", "gain"):
        if column not in gains:
            raise ValueError(f"gains: expected a column {column!r}, got {list(gains.columns)}")
    known = cdi_categories() if categories is None else categories
    rows = []
    for model, of_model in gains.groupby("model", sort=True):
        steps, cube = _cube(of_model, str(model))  # [nouns, seeds × contexts, steps]
        nouns, seeds = sorted(of_model["target"].unique()), of_model["seed"].nunique()
        means = np.nanmean(cube, 1)
        groups = {"noun": {noun: cube[i][~np.isnan(cube[i]).any(1)] for i, noun in enumerate(nouns)}}
        of_category: dict[str, list[int]] = {}
        for i, noun in enumerate(nouns):
            of_category.setdefault(known.get(noun, "other"), []).append(i)
        groups["category"] = {name: means[index] for name, index in sorted(of_category.items())}
        groups["model"] = {str(model): means}
        for kind, units in groups.items():
            for unit, curves in units.items():
                low, high = _interval(curves, steps, threshold, level, seed)
                rows.append(
                    {
                        "model": model, "level": kind, "unit": unit, "step": _passes(curves.mean(0), steps, threshold),
                        "low": low, "high": high, "count": len(curves), "seeds": seeds,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def _cube(gains: pd.DataFrame, model: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(steps, gains [nouns, seeds × contexts, steps])"""
    table = gains.pivot_table("gain", ["target", "seed", "context"], "step", sort=True)
    lacking = table.isna().any(axis=1)
    if lacking.any():
        seeds = sorted(set(table.index[lacking].get_level_values("seed")))
        raise ValueError(f"gains: the runs of {model} have not the same checkpoints; seeds {seeds} lack some")
    whole = table.unstack(["seed", "context"]).stack("step", future_stack=True)  # (noun, step) × cells
    nouns, steps = len(table.index.unique("target")), table.columns.to_numpy(dtype=float)
    return steps, whole.to_numpy(dtype=float).reshape(nouns, len(steps), -1).swapaxes(1, 2)


def _passes(curve: NDArray[np.float64], steps: NDArray[np.float64], threshold: float) -> float:
    """The step from which a curve [steps] stays above the threshold."""
    return float(_all_pass(curve[None], steps, threshold)[0])


def _all_pass(curves: NDArray[np.float64], steps: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """The steps [M] from which curves [M,steps] stay above the threshold."""
    below = curves <= threshold
    last = np.where(below.any(1), curves.shape[1] - 1 - below[:, ::-1].argmax(1), -1)  # the last checkpoint below
    found = np.full(len(curves), np.inf)
    found[last == -1] = steps[0]
    inside = (last >= 0) & (last < curves.shape[1] - 1)
    at, row = last[inside], np.flatnonzero(inside)
    y0, y1 = curves[row, at], curves[row, at + 1]
    found[inside] = steps[at] + (threshold - y0) / (y1 - y0) * (steps[at + 1] - steps[at])
    return found


def _interval(
    curves: NDArray[np.float64], steps: NDArray[np.float64], threshold: float, level: float, seed: int
) -> tuple[float, float]:
    """The bootstrap interval of the emergence step of the mean of curves [n,steps], resampling curves."""
    if len(curves) < 2:
        return np.nan, np.nan

    def passes(index: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
        flat = index.reshape(-1, index.shape[-1])
        return _all_pass(curves[flat].mean(1), steps, threshold).reshape(index.shape[:-1])

    with np.errstate(invalid="ignore"):
        found = bootstrap(
            np.arange(len(curves)), passes, n_resamples=_RESAMPLES, method="percentile", vectorized=True,
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution  # fmt: skip
    # Percentiles are values of resamples, since some are infinite: interpolation towards infinity is infinite.
    tail = round(100 * (1 - level) / 2, 9)  # exactly 2.5: a rounding error above it would take the next resample
    low, high = np.percentile(found, [tail, 100 - tail], method="inverted_cdf")
    return float(low), float(high)
