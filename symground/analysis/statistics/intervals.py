"""Intervals, effect sizes, tests and corrected p-values for the tables, by scipy and statsmodels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = NDArray[np.float64]
_RESAMPLES, _PERMUTATIONS = 2000, 9999


def bootstrap_interval(
    values: Values, level: float = 0.95, seed: int = 0, statistic: Callable[..., Any] = np.mean
) -> tuple[Values, Values]:
    """Bootstrap interval (BCa) of a statistic (by default the mean) of each row [rows,n]: low and high [rows].

    The interval is NaN for n < 2, and if BCa is undefined for so few numbers. If all numbers of a row are equal, both
    ends are the statistic.

    Source: Efron 1987, "Better bootstrap confidence intervals".
    """
    low, high = (np.full(len(values), np.nan) for _ in range(2))
    if values.shape[1] < 2:
        return low, high
    varied = np.ptp(values, axis=-1) > 0
    low[~varied] = high[~varied] = statistic(values[~varied], axis=-1)
    if varied.any():
        found = bootstrap(
            values[varied], statistic, axis=-1, confidence_level=level, n_resamples=_RESAMPLES,
            rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        low[varied], high[varied] = found.low, found.high
    return low, high


def bootstrap(values: NDArray[Any], statistic: Callable[..., Any], **how: Any) -> Any:
    """scipy's bootstrap of one sample, without its warning about identical resamples. Callers say what the interval
    then is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return stats.bootstrap((values,), statistic, **how)


def cohens_d(differences: Values, axis: int = -1) -> Any:
    """Mean over standard deviation of paired differences (Cohen 1988's d_z); NaN if all differences are equal."""
    deviation = np.std(differences, axis=axis, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(deviation > 0, np.mean(differences, axis=axis) / deviation, np.nan)


def holm(p: Values) -> Values:
    """p-values of several tests, corrected for their number. NaN (a test that was not run) is kept and not counted.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    corrected, made = np.full(len(p), np.nan), ~np.isnan(p)
    if made.any():
        order = np.flatnonzero(made)[np.argsort(p[made])]
        corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return corrected


def paired(differences: Values, seed: int = 0) -> dict[str, float]:
    """Tests of whether the mean of paired differences [n] is 0.

    Returns:
        mean; low and high, its bootstrap interval (BCa, 95 %); p, of the paired t-test; p_permutation, two-sided, by
        random sign flips (all of them if there are few); d, Cohen's d; n. p, p_permutation and d are NaN if n < 2 or
        all differences are equal.

    Source: scipy's ttest_1samp and permutation_test; Cohen 1988 (d_z); Efron 1987 (BCa).
    """
    differences = np.asarray(differences, dtype=float)
    n = len(differences)
    (low,), (high,) = bootstrap_interval(differences[None], seed=seed)
    row = {
        "mean": float(differences.mean()) if n else np.nan, "low": float(low), "high": float(high), "p": np.nan,
        "p_permutation": np.nan, "d": np.nan, "n": n,
    }  # fmt: skip
    if n > 1 and np.ptp(differences) > 0:
        row["p"] = float(stats.ttest_1samp(differences, 0.0).pvalue)
        row["d"] = float(cohens_d(differences))
        row["p_permutation"] = float(
            stats.permutation_test(
                (differences,), np.mean, permutation_type="samples", n_resamples=_PERMUTATIONS, vectorized=True,
                rng=np.random.default_rng(seed),
            ).pvalue
        )  # fmt: skip
    return row


def over_few(values: Values, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of a few runs, by Student's t; the interval of a single run is NaN.

    A bootstrap interval of five numbers would be too narrow.
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, np.nan, np.nan
    error = float(stats.sem(values))
    if error == 0:
        return mean, mean, mean
    low, high = stats.t.interval(level, len(values) - 1, loc=mean, scale=error)
    return mean, float(low), float(high)


def resampled(
    values: Values, statistic: Callable[[Values], Values], level: float = 0.95, seed: int | None = 0
) -> tuple[Values, Values]:
    """Bootstrap intervals (percentiles) of several statistics of a table at once, resampling its rows.

    Args:
        values: [n,c].
        statistic: [M,n,c] → [M,s].
        level: of the interval.
        seed: of the resamples; None for no interval.

    Returns:
        low, high [s]: NaN without a seed, and for a statistic that is NaN in a resample.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    count = statistic(values[None]).shape[-1]
    if seed is None:
        return np.full(count, np.nan), np.full(count, np.nan)

    def of(index: NDArray[np.int64], axis: int = -1) -> Values:
        rows = statistic(values[index.reshape(-1, index.shape[-1])])  # [M,s]
        return rows.T.reshape(count, *index.shape[:-1])

    found = bootstrap(
        np.arange(len(values)), of, n_resamples=_RESAMPLES, method="percentile", confidence_level=level,
        vectorized=True, batch=200, rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return np.atleast_1d(found.low), np.atleast_1d(found.high)
