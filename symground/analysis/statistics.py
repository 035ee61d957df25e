"""The statistics of the tables: intervals, effect sizes, and p-values of several tests, by scipy and statsmodels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from symground.optional import require

Values = NDArray[np.float64]
_RESAMPLES = 2000


def bootstrap_interval(
    values: Values, level: float = 0.95, seed: int = 0, statistic: Callable[..., Any] = np.mean
) -> tuple[Values, Values]:
    """Bootstrap interval (BCa) of a statistic of each row [rows,n]: low and high [rows], by default of the mean.

    NaN for n < 2, and where the resamples of so few numbers leave nothing to tell; the statistic twice where all
    numbers of a row are equal.

    Source: Efron 1987, "Better bootstrap confidence intervals".
    """
    low, high = (np.full(len(values), np.nan) for _ in range(2))
    if values.shape[1] < 2:
        return low, high
    varied = np.ptp(values, axis=-1) > 0
    low[~varied] = high[~varied] = statistic(values[~varied], axis=-1)
    if varied.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                (values[varied],),
                statistic,
                axis=-1,
                confidence_level=level,
                n_resamples=_RESAMPLES,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        low[varied], high[varied] = found.low, found.high
    return low, high


def cohens_d(differences: Values, axis: int = -1) -> Any:
    """Mean over standard deviation of paired differences (Cohen 1988's d_z); NaN where they do not differ."""
    deviation = np.std(differences, axis=axis, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(deviation > 0, np.mean(differences, axis=axis) / deviation, np.nan)


def holm(p: Values) -> Values:
    """p-values of several tests, corrected for their number; NaN, a test that was not made, stays NaN and counts not.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    corrected, made = np.full(len(p), np.nan), ~np.isnan(p)
    if made.any():
        tests = require("statsmodels.stats.multitest", "corrected p-values")
        corrected[made] = tests.multipletests(p[made], method="holm")[1]
    return corrected
