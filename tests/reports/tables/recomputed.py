"""Statistics recomputed from the results by their formulas, in an independent implementation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from symground.data.words import cdi_categories
from tests.reports.tables.shown import Row

Values = NDArray[np.float64]
MODELS, LAST, RUNS = ("gpt2-4l", "mamba2-4l"), 400, [("gpt2-4l", 0), ("gpt2-4l", 1), ("mamba2-4l", 0), ("mamba2-4l", 1)]
AGES = {"ball": 12.0, "dog": 14.0, "book": 19.0, "cup": 13.0, "shoe": 17.0, "car": 15.0}


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction: p in ascending order, times the number of those left, and never below the one before."""
    found, before = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        before = found[i] = min(1.0, max(before, p[i] * (len(p) - rank)))
    return found


def bca(values: Values) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns about the interval of few values
        found = stats.bootstrap((values,), np.mean, n_resamples=2000, rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)


def of(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return frame


def means(frame: pd.DataFrame, unit: str, column: str) -> Values:
    """The column's mean for each noun, or for each seed."""
    return np.array([of(frame, **{unit: value})[column].to_numpy().mean() for value in sorted(set(frame[unit]))])


def told_of(gains: pd.DataFrame, model: str) -> dict[int, Row]:
    """Step → the paired t-test over nouns at this checkpoint of a model, with p corrected over checkpoints."""
    steps = sorted(set(of(gains, model=model)["step"]))
    by_noun = [means(of(gains, model=model, step=step), "target", "gain") for step in steps]
    # t of the paired differences, by its formula.
    t = [x.mean() / (x.std(ddof=1) / np.sqrt(len(x))) for x in by_noun]
    p = [float(2 * stats.t.sf(abs(value), len(x) - 1)) for value, x in zip(t, by_noun, strict=True)]
    return {
        step: {"p": raw, "holm": corrected, "d": x.mean() / x.std(ddof=1), "gains": x}
        for step, raw, corrected, x in zip(steps, p, holm(p), by_noun, strict=True)
    }


def over_seeds(values: Values) -> tuple[float, float]:
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def passes(curve: Values, steps: Values) -> float:
    """The step from which a curve stays above 1, found from the end."""
    found = np.inf
    for i in range(len(curve) - 1, -1, -1):
        if curve[i] <= 1:
            return (
                found
                if i == len(curve) - 1
                else steps[i] + (1 - curve[i]) / (curve[i + 1] - curve[i]) * (steps[i + 1] - steps[i])
            )
        found = steps[i]
    return found


def emergence_of(contexts: pd.DataFrame, model: str, whole: bool = False) -> tuple[dict[str, float], list[Row]]:
    """(noun → its step, the rows of the model and its categories)"""
    part = of(contexts, model=model)
    steps = np.array(sorted(set(part["step"])), float)
    nouns = sorted(set(part["target"]))
    curves = {v: np.array([of(part, target=v, step=s)["gain"].mean() for s in steps]) for v in nouns}
    known = cdi_categories()
    groups = {("model", model): nouns}
    for category in () if whole else sorted({known[v] for v in nouns}):
        groups["category", category] = [v for v in nouns if known[v] == category]
    rows = []
    for (level, name), members in groups.items():
        own = np.array([curves[v] for v in members])
        low, high = np.nan, np.nan
        if len(own) > 1:
            rng = np.random.default_rng(0)
            drawn = sorted(passes(own[rows].mean(0), steps) for rows in rng.integers(0, len(own), (1000, len(own))))
            low, high = drawn[24], drawn[974]  # of 1,000, the 25th and the 975th
        step = passes(own.mean(0), steps)
        rows.append({"model": model, "of": level, "which": name, "step": step, "low": low, "high": high,
                     "nouns": len(members), "seeds": 2})  # fmt: skip
    rows.sort(key=lambda row: row["step"])
    return {v: passes(curves[v], steps) for v in nouns}, sorted(rows, key=lambda r: r["of"], reverse=True)


KINDS = [(kind, denominator) for kind in ("aggregate", "gather") for denominator in ("matrix", "row")]
