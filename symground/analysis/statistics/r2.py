"""How much of the gain co-occurrence explains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from symground.analysis.statistics.intervals import resampled
from symground.errors import integer

_Values = NDArray[np.float64]
_LEVEL = 0.95


def cooccurrence_r2(gains: pd.DataFrame, counts: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The share of the variance of G(v) over nouns that a least-squares line on co-occurrence explains, in-sample.

    Args:
        gains: from :func:`symground.gain`.
        counts: from :func:`symground.cooccurrence`.
        seed: of the bootstrap.

    Returns:
        A DataFrame with one row. Its columns:

        - r2, slope (nats per unit of the logarithm): of a line on log(1 + count of v:<ENV> with v:<LAN>);
        - pmi_r2, pmi_slope: of a line on their pointwise mutual information; pmi_nouns: the number of nouns in it,
          which are those that co-occur at least once;
        - partial_r2: of the variance that log(1 + count of v:<ENV>) and log(1 + count of v:<LAN>) leave unexplained,
          the share that the co-occurrence count explains;
        - r2_low, r2_high and so on for r2, slope and partial_r2: bootstrap intervals over nouns (percentiles, 95 %);
        - nouns: their number; mean_gain.

        The statistics are NaN if the mean gain is not above 0, since they would mean nothing, if all counts are equal,
        or if there are too few nouns.

    Raises:
        ValueError: a noun without a count.

    Source: arXiv 2510.13796, R² of the gain against co-occurrence statistics; Cohen 1988 (partial R²).
    """
    seed = integer("seed", seed, 0)
    own = counts[counts["env"] == counts["lan"]].set_index("env")
    missing = [noun for noun in gains["target"] if noun not in own.index]
    if missing:
        raise ValueError(f"counts: no co-occurrence count for {', '.join(missing)}")
    own = own.loc[gains["target"]]
    y = gains["gain"].to_numpy(dtype=float)
    together = np.log1p(own["count"].to_numpy(dtype=float))
    row: dict[str, Any] = dict.fromkeys(
        ("r2", "r2_low", "r2_high", "slope", "slope_low", "slope_high", "pmi_r2", "pmi_slope", "partial_r2",
         "partial_r2_low", "partial_r2_high"), np.nan,
    )  # fmt: skip
    row |= {"pmi_nouns": 0, "nouns": len(y), "mean_gain": y.mean()}
    if "pmi" in own:
        pmi = own["pmi"].to_numpy(dtype=float)
        row["pmi_nouns"] = int(np.isfinite(pmi).sum())
    if y.mean() > 0:
        found = _line(together[:, None], y, seed)
        row |= dict(zip(("r2", "r2_low", "r2_high", "slope", "slope_low", "slope_high"), found, strict=True))
        if "pmi" in own:
            there = np.isfinite(pmi)
            row["pmi_r2"], *_, row["pmi_slope"], _, _ = _line(pmi[there, None], y[there], None)
        if {"env_count", "lan_count"} <= set(own.columns):
            frequency = np.log1p(own[["env_count", "lan_count"]].to_numpy(dtype=float))
            found = _partial(together, frequency, y, seed)
            row |= dict(zip(("partial_r2", "partial_r2_low", "partial_r2_high"), found, strict=True))
    return pd.DataFrame([row])


def _line(x: _Values, y: _Values, seed: int | None) -> tuple[float, ...]:
    """(R², low, high, slope, low, high) of y [n] on x [n,1]; without a seed the intervals are NaN."""
    if len(y) < 3 or np.ptp(x) == 0:
        return (np.nan,) * 6
    values = np.concatenate([x, y[:, None]], 1)

    def both(rows: _Values) -> _Values:  # [M,n,2] → [M,2]
        r2, coefficients = _fit(rows[..., :1], rows[..., 1])
        return np.stack([r2, coefficients[..., 0]], -1)

    (r2, slope), (low, high) = both(values[None])[0], resampled(values, both, _LEVEL, seed)
    return float(r2), float(low[0]), float(high[0]), float(slope), float(low[1]), float(high[1])


def _partial(x: _Values, others: _Values, y: _Values, seed: int) -> tuple[float, ...]:
    """(partial R², low, high) of y [n] on x [n] given others [n,k]."""
    if len(y) < others.shape[1] + 3 or np.ptp(x) == 0:
        return (np.nan,) * 3
    values = np.concatenate([others, x[:, None], y[:, None]], 1)

    def partial(rows: _Values) -> _Values:  # [M,n,k+2] → [M,1]
        reduced, full = (_fit(rows[..., :k], rows[..., -1])[0] for k in (-2, -1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return ((full - reduced) / (1 - reduced))[:, None]

    low, high = resampled(values, partial, _LEVEL, seed)
    return float(partial(values[None])[0, 0]), float(low[0]), float(high[0])


def _fit(x: _Values, y: _Values) -> tuple[_Values, _Values]:
    """R² [M] and coefficients [M,k] of M ordinary least-squares fits with an intercept: x [M,n,k], y [M,n]."""
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    coefficients = np.einsum("mkn,mn->mk", np.linalg.pinv(x), y)
    left = y - np.einsum("mnk,mk->mn", x, coefficients)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (left**2).sum(1) / (y**2).sum(1), coefficients


def peak(r2: pd.DataFrame) -> pd.DataFrame:
    """The checkpoint at which R² is largest, and its fall until the last checkpoint.

    Args:
        r2: the results' table "r2": model, seed, step, r2, slope and nouns; rows whose r2 is NaN are ignored.

    Returns:
        A DataFrame with a row per model: model; peak_step, peak and slope at the largest mean of R² over seeds;
        last_step, last and last_slope at the last checkpoint; fall, the peak minus the last; nouns, seeds.
    """
    rows = []
    for model, of_model in r2.groupby("model", sort=True):
        mean = of_model.groupby("step")[["r2", "slope"]].mean().dropna()
        row: dict[str, Any] = {
            "model": model,
            "seeds": of_model["seed"].nunique(),
            "nouns": int(of_model["nouns"].max()),
        }
        if len(mean):
            steps, values, slopes = mean.index.to_numpy(), mean["r2"].to_numpy(float), mean["slope"].to_numpy(float)
            at = int(values.argmax())
            row |= {
                "peak_step": int(steps[at]), "peak": values[at], "slope": slopes[at], "last_step": int(steps[-1]),
                "last": values[-1], "last_slope": slopes[-1], "fall": values[at] - values[-1],
            }  # fmt: skip
        rows.append(row)
    columns = ["model", "peak_step", "peak", "slope", "last_step", "last", "last_slope", "fall", "nouns", "seeds"]
    return pd.DataFrame(rows, columns=columns)
