"""Every interval, p and count of the statistics is recomputed here from its resamples, and compared by value."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

import symground as sg
from symground.analysis.statistics.curves import over_training
from symground.analysis.statistics.emergence_step import emergence
from symground.analysis.statistics.information_gain import gain_by_context, gain_interval
from symground.analysis.statistics.intervals import bootstrap_interval, cohens_d, holm, over_few, paired, resampled
from symground.analysis.statistics.r2 import cooccurrence_r2, peak

Values = NDArray[np.float64]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        yield


def bca(values: Values, level: float = 0.95, seed: int = 0, statistic: Any = np.mean) -> tuple[float, float]:
    found = stats.bootstrap(
        (values,), statistic, confidence_level=level, n_resamples=2000, rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(found.low), float(found.high)


def percentiles(
    count: int, of_rows: Callable[[NDArray[np.int64]], float], resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentiles of a statistic of rows drawn with replacement, one resample after the other."""
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    low, high = np.percentile([of_rows(rows) for rows in drawn], [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


@pytest.mark.parametrize(("level", "seed"), [(0.95, 0), (0.8, 3)])
def test_bootstrap_intervals(level: float, seed: int) -> None:
    rows = np.random.default_rng(1).exponential(2.0, (3, 11))
    for statistic in (np.mean, cohens_d):
        low, high = bootstrap_interval(rows, level, seed, statistic)
        for i, row in enumerate(rows):
            assert (low[i], high[i]) == pytest.approx(bca(row, level, seed, statistic))
    # A row of equal numbers does not affect the other rows.
    mixed = np.stack([rows[0], np.full(11, 7.0), rows[1]])
    low, high = bootstrap_interval(mixed, level, seed)
    assert (low[1], high[1]) == (7.0, 7.0)
    assert (low[2], high[2]) == pytest.approx(bca(rows[1], level, seed))


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_a_few_runs(level: float) -> None:
    values = np.array([1.0, 4.0, 2.5, 7.0])
    mean, low, high = over_few(values, level)
    half = stats.t.ppf(0.5 + level / 2, 3) * values.std(ddof=1) / 2
    assert (mean, low, high) == pytest.approx((3.625, 3.625 - half, 3.625 + half))


@pytest.mark.parametrize(("level", "seed"), [(0.95, 0), (0.6, 4)])
def test_several_statistics_at_once(level: float, seed: int) -> None:
    values = np.random.default_rng(2).normal(1, 2, (9, 2))
    low, high = resampled(values, lambda rows: np.stack([rows[..., 0].mean(1), rows.max((1, 2))], -1), level, seed)
    for place, of_rows in enumerate((lambda i: values[i, 0].mean(), lambda i: values[i].max())):
        assert (low[place], high[place]) == pytest.approx(percentiles(9, of_rows, 2000, seed, level))
    low, high = resampled(values, lambda rows: rows.mean(1), seed=None)
    assert np.isnan([*low, *high]).all()
    assert low.shape == high.shape == (2,)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_paired(count: int) -> None:
    x = np.random.default_rng(count).normal(0.7, 1, count)
    found = paired(x, seed=2)
    t = x.mean() / (x.std(ddof=1) / np.sqrt(count))
    flips = np.array([np.mean(x * signs) for signs in itertools.product((1, -1), repeat=count)])
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(t), count - 1))
    assert found["p_permutation"] == pytest.approx(np.mean(abs(flips) >= abs(x.mean()) - 1e-12))
    assert (found["mean"], found["d"], found["n"]) == pytest.approx((x.mean(), x.mean() / x.std(ddof=1), count))
    assert (found["low"], found["high"]) == pytest.approx(bca(x, seed=2), nan_ok=True)
    # The test is two-sided.
    assert paired(-x, seed=2)["p_permutation"] == pytest.approx(found["p_permutation"])
    assert np.isnan([v for k, v in paired(np.array([])).items() if k != "n"]).all()


def test_holm_of_many() -> None:
    p = np.random.default_rng(3).uniform(0, 0.2, 9)
    p[4] = np.nan
    order = np.argsort(p)[:8]
    expected, before = np.full(9, np.nan), 0.0
    for rank, i in enumerate(order):
        before = expected[i] = min(1.0, max(before, p[i] * (8 - rank)))
    np.testing.assert_allclose(holm(p), expected)


def eighths(x: Values) -> Values:
    """Numbers whose sums are exact, since BCa counts resamples whose mean equals the sample's."""
    return np.round(8 * x) / 8


def scores(contexts: int, nouns: str = "abcde", seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [(c, u, v, round(8 * rng.exponential(3.0)) / 8) for c in range(contexts) for u in nouns for v in nouns]
    return pd.DataFrame(rows, columns=["context", "env", "target", "surprisal"])


@pytest.mark.parametrize(("level", "seed"), [(0.95, 0), (0.7, 5)])
def test_gains_and_their_intervals_over_contexts(level: float, seed: int) -> None:
    table = scores(7)
    table = table[~((table["target"] == "c") & (table["context"] > 4))]  # a noun that was scored in fewer contexts
    found = sg.gain(table, level, seed).set_index("target")
    for noun in "abcde":
        contexts = range(5 if noun == "c" else 7)
        own = [table[(table["context"] == c) & (table["target"] == noun)] for c in contexts]
        matched = np.array([x.loc[x["env"] == noun, "surprisal"].mean() for x in own])
        mismatched = np.array([x.loc[x["env"] != noun, "surprisal"].mean() for x in own])
        for name, values in (("matched", matched), ("mismatched", mismatched), ("gain", mismatched - matched)):
            assert found.loc[noun, name] == pytest.approx(values.mean())
            shown = (found.loc[noun, f"{name}_low"], found.loc[noun, f"{name}_high"])
            assert shown == pytest.approx(bca(values, level, seed))
    mean, low, high = gain_interval(found, level, seed)
    values = found["gain"].to_numpy()
    assert (mean, low, high) == pytest.approx((values.mean(), *bca(values, level, seed)))
    assert gain_interval(found[:1]) == (values[0],) * 3


def test_gain_by_context_keeps_runs_apart() -> None:
    table = pd.concat([scores(2, seed=s).assign(model="m", seed=s, step=10 * s) for s in (1, 2)])
    found = gain_by_context(table)
    assert list(found.columns) == ["model", "seed", "step", "context", "target", "matched", "mismatched", "gain"]
    assert len(found) == 2 * 2 * 5
    for row in found.to_dict("records"):
        part = table[(table["seed"] == row["seed"]) & (table["context"] == row["context"])]
        part = part[part["target"] == row["target"]]
        matched = part.loc[part["env"] == row["target"], "surprisal"].mean()
        mismatched = part.loc[part["env"] != row["target"], "surprisal"].mean()
        assert (row["matched"], row["mismatched"], row["gain"]) == pytest.approx(
            (matched, mismatched, mismatched - matched)
        )


def test_over_training_of_several_models_checkpoints_and_seeds() -> None:
    rng = np.random.default_rng(6)
    table = pd.DataFrame(
        [
            {"model": m, "seed": s, "step": t, "target": v, "matched": x, "mismatched": x + g, "gain": g}
            for m in ("a", "b") for s in range(4) for t in (0, 5, 9) for v in "pqrst"
            for x, g in [eighths(np.array([rng.uniform(1, 9), rng.normal(t / 5, 1)]))]
        ]
    )  # fmt: skip
    found = over_training(table, seed=4)
    assert found[["model", "step"]].to_numpy().tolist() == [[m, t] for m in ("a", "b") for t in (0, 5, 9)]
    for model, of_model in found.groupby("model"):
        np.testing.assert_allclose(of_model["p_holm"], holm(of_model["p"].to_numpy()))
        for row in of_model.to_dict("records"):
            part = table[(table["model"] == model) & (table["step"] == row["step"])]
            for name in ("matched", "mismatched", "gain"):
                by_noun = np.array([part.loc[part["target"] == v, name].mean() for v in "pqrst"])
                by_seed = np.array([part.loc[part["seed"] == s, name].mean() for s in range(4)])
                assert row[name] == pytest.approx(by_noun.mean())
                assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(bca(by_noun, seed=4))
                assert (row[f"{name}_seed_low"], row[f"{name}_seed_high"]) == pytest.approx(over_few(by_seed)[1:])
            assert row["p"] == pytest.approx(stats.ttest_1samp(by_noun, 0).pvalue)
            assert row["d"] == pytest.approx(by_noun.mean() / by_noun.std(ddof=1))
            assert row["p_permutation"] == pytest.approx(paired(by_noun, 4)["p_permutation"])
            assert (row["nouns"], row["seeds"]) == (5, 4)


def fit(x: Values, y: Values) -> tuple[float, Values]:
    """R² and coefficients by numpy's solution of the normal equations."""
    design = np.column_stack([np.ones(len(y)), x])
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    left = y - design @ coefficients
    return 1 - (left @ left) / ((y - y.mean()) @ (y - y.mean())), coefficients[1:]


def test_r2_and_its_intervals() -> None:
    rng = np.random.default_rng(7)
    nouns = [f"n{i}" for i in range(14)]
    scene, speech = rng.integers(50, 900, 14), rng.integers(50, 900, 14)
    together = (np.sqrt(scene * speech) * rng.uniform(0.2, 3, 14)).astype(int)
    pmi = rng.normal(0, 1, 14)
    pmi[2] = -np.inf
    counts = pd.DataFrame({"env": nouns, "lan": nouns, "count": together, "env_count": scene, "lan_count": speech})
    counts = pd.concat([counts.assign(pmi=pmi), counts.assign(env="other", pmi=9.0)])  # pairs of two nouns are ignored
    y = 1 + 0.3 * np.log1p(together) + rng.normal(0, 0.4, 14)
    order = rng.permutation(14)
    (row,) = cooccurrence_r2(
        pd.DataFrame({"target": [nouns[i] for i in order], "gain": y[order]}), counts, seed=3
    ).to_dict("records")
    x, both = np.log1p(together)[order], np.log1p(np.stack([scene, speech], 1))[order]
    y, pmi = y[order], pmi[order]

    def partial(rows: NDArray[np.int64]) -> float:
        reduced = fit(both[rows], y[rows])[0]
        return (fit(np.column_stack([both, x])[rows], y[rows])[0] - reduced) / (1 - reduced)

    whole = np.arange(14)
    for name, of_rows in (
        ("r2", lambda rows: fit(x[rows], y[rows])[0]), ("slope", lambda rows: fit(x[rows], y[rows])[1][0]),
        ("partial_r2", partial),
    ):  # fmt: skip
        assert row[name] == pytest.approx(of_rows(whole)), name
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(percentiles(14, of_rows, seed=3)), name
    there = np.isfinite(pmi)
    assert row["pmi_r2"] == pytest.approx(fit(pmi[there], y[there])[0])
    assert row["pmi_slope"] == pytest.approx(fit(pmi[there], y[there])[1][0])
    assert (row["pmi_nouns"], row["nouns"], row["mean_gain"]) == (13, 14, pytest.approx(y.mean()))


def test_r2_of_too_little() -> None:
    def of(many: int, **more: Any) -> dict[str, Any]:
        nouns = list("abcdef")[:many]
        counts = pd.DataFrame({"env": nouns, "lan": nouns, "count": range(many), "env_count": 5, "lan_count": 6} | more)
        gains = pd.DataFrame({"target": nouns, "gain": np.arange(1.0, many + 1) ** 2})
        found: dict[str, Any] = cooccurrence_r2(gains, counts).to_dict("records")[0]
        return found

    assert np.isnan(of(2)["r2"])
    assert np.isfinite(of(3)["r2"])
    assert np.isnan(of(3, count=[1, 1, 1])["r2"])
    assert np.isnan(of(4)["partial_r2"])
    assert np.isfinite(of(5, env_count=[1, 2, 4, 3, 9], lan_count=[5, 2, 8, 1, 3])["partial_r2"])
    assert np.isnan(of(5, count=[1] * 5)["partial_r2"])
    only = pd.DataFrame({"env": list("abc"), "lan": list("abc"), "count": [0, 1, 5]})  # no pmi and no frequencies
    row = cooccurrence_r2(pd.DataFrame({"target": list("abc"), "gain": [1.0, 2, 4]}), only).iloc[0]
    assert np.isfinite(row["r2"])
    assert np.isnan(row["pmi_r2"])
    assert row["pmi_nouns"] == 0


@pytest.mark.parametrize(("mean", "there"), [(-0.5, False), (0.0, False), (0.5, True)])
def test_r2_is_of_a_gain_above_0(mean: float, there: bool) -> None:
    counts = pd.DataFrame({"env": list("abc"), "lan": list("abc"), "count": [0, 1, 5]})
    row = cooccurrence_r2(pd.DataFrame({"target": list("abc"), "gain": mean + np.array([-1, 0.25, 0.75])}), counts)
    assert np.isfinite(row["r2"].iloc[0]) == there
    assert row["mean_gain"].iloc[0] == mean


def test_the_peak_is_of_the_mean_over_seeds() -> None:
    rows = [("a", 0, 1, 0.9, 1.0, 5), ("a", 1, 1, 0.1, 3.0, 7), ("a", 0, 2, 0.6, -2.0, 6), ("a", 1, 2, 0.7, 5.0, 6),
            ("a", 0, 3, 0.2, 4.0, 6), ("b", 0, 1, np.nan, np.nan, 4)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["model", "seed", "step", "r2", "slope", "nouns"])
    a, b = peak(table).to_dict("records")
    assert (a["peak_step"], a["last_step"], a["seeds"], a["nouns"]) == (2, 3, 2, 7)
    assert (a["peak"], a["slope"], a["last"], a["last_slope"], a["fall"]) == pytest.approx((0.65, 1.5, 0.2, 4.0, 0.45))
    assert (b["model"], b["seeds"], b["nouns"]) == ("b", 1, 4)
    assert np.isnan(b["peak"])


def crossing(curve: Values, steps: Values, threshold: float) -> float:
    above = curve > threshold
    if not above[-1]:
        return np.inf
    if above.all():
        return float(steps[0])
    i = int(np.flatnonzero(~above)[-1])
    return float(np.interp(threshold, curve[[i, i + 1]], steps[[i, i + 1]]))


@pytest.mark.parametrize(("level", "seed", "threshold"), [(0.95, 0, 1.0), (0.6, 2, 0.7)])
def test_emergence_of_several_seeds(level: float, seed: int, threshold: float) -> None:
    """Each seed and context has its own curve; some never pass, and one noun is not scored in one context."""
    rng = np.random.default_rng(8)
    steps = np.array([3.0, 10.0, 30.0, 31.0, 70.0])
    kinds = {"dog": "x", "cat": "x", "cup": "x", "car": "y", "box": "y"}
    rows = [
        ("m", s, int(t), c, v, value)
        for s in (0, 1, 2) for c in (0, 1) for v in kinds if (v, c) != ("cup", 1)
        for t, value in zip(steps, np.sort(rng.normal(1.0, 0.9, 5)) + rng.normal(0, 0.3, 5), strict=True)
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["model", "seed", "step", "context", "target", "gain"])
    found = emergence(table, threshold, level, seed, kinds).set_index(["level", "unit"])
    curves = {
        v: np.array([part["gain"].to_numpy() for _, part in table[table["target"] == v].groupby(["seed", "context"])])
        for v in kinds
    }
    means = {v: own.mean(0) for v, own in curves.items()}
    units = {("noun", v): own for v, own in curves.items()}
    units |= {("category", k): np.array([means[v] for v in sorted(kinds) if kinds[v] == k]) for k in "xy"}
    units["model", "m"] = np.array([means[v] for v in sorted(kinds)])
    assert set(found.index) == set(units)
    for key, own in units.items():
        row = found.loc[key]
        assert row["step"] == pytest.approx(crossing(own.mean(0), steps, threshold))
        assert (row["count"], row["seeds"]) == (len(own), 3)
        drawn = np.random.default_rng(seed).integers(0, len(own), (1000, len(own)))
        passed = sorted(crossing(own[index].mean(0), steps, threshold) for index in drawn)
        tail = round(1000 * (1 - level) / 2)
        assert (row["low"], row["high"]) == pytest.approx((passed[tail - 1], passed[1000 - tail - 1]))


def test_a_curve_that_touches_the_threshold_is_not_above_it() -> None:
    rows = [("m", 0, t, 0, v, g) for v in "ab" for t, g in ((0, 0.0), (10, 1.0), (20, 2.0))]
    table = pd.DataFrame(rows, columns=["model", "seed", "step", "context", "target", "gain"])
    assert set(emergence(table, categories={})["step"]) == {10.0}  # the step at which the curve leaves the threshold
    assert set(emergence(table[table["step"] < 20], categories={})["step"]) == {np.inf}
    assert set(emergence(table[table["step"] > 0], categories={})["step"]) == {10.0}
    assert emergence(table, categories={})["unit"].tolist() == ["a", "b", "other", "m"]
