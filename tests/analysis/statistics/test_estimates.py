"""Paired tests, regressions and mixed models against cases computed by hand and a second library."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from symground.analysis.statistics.curves import over_training
from symground.analysis.statistics.intervals import over_few, paired, resampled
from symground.analysis.statistics.mixed_models import mixed_effects
from symground.analysis.statistics.r2 import cooccurrence_r2, peak


def test_paired_by_hand() -> None:
    found = paired(np.array([1.0, 2.0, 3.0, 4.0]))
    # t = 2.5 / (1.291 / 2) = 3.873 with 3 degrees of freedom. In 2 of the 16 permutations all signs are equal.
    assert found["p"] == pytest.approx(2 * stats.t.sf(2.5 / (np.std([1, 2, 3, 4], ddof=1) / 2), 3))
    assert found["p_permutation"] == pytest.approx(2 / 16)
    assert found["d"] == pytest.approx(2.5 / np.std([1, 2, 3, 4], ddof=1))
    assert (found["mean"], found["n"]) == (2.5, 4)
    same = paired(np.array([2.0, 2.0]))
    assert (same["low"], same["high"]) == (2.0, 2.0)
    assert np.isnan([same["p"], same["p_permutation"], same["d"]]).all()
    assert np.isnan(paired(np.array([2.0]))["low"])


def test_paired_tests_hold_their_level() -> None:
    rng = np.random.default_rng(0)
    found = [paired(rng.normal(0, 1, 12), seed) for seed in range(100)]
    for name in ("p", "p_permutation"):
        assert sum(row[name] < 0.05 for row in found) < 12
    assert 88 <= sum(row["low"] <= 0 <= row["high"] for row in found) <= 99


def test_a_few_seeds_by_hand() -> None:
    mean, low, high = over_few(np.array([1.0, 2.0, 3.0]))
    half = 4.302652729749464 / np.sqrt(3)  # t of 2 degrees of freedom at 0.975; sd 1
    assert (mean, low, high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))
    assert np.isnan(over_few(np.array([1.0]))[1])
    assert over_few(np.array([1.0, 1.0])) == (1.0, 1.0, 1.0)


def test_resampled_is_scipys_bootstrap() -> None:
    values = np.random.default_rng(1).normal(3, 1, (40, 2))
    low, high = resampled(values, lambda rows: rows.mean(1))
    for column in range(2):
        expected = stats.bootstrap((values[:, column],), np.mean, method="percentile", rng=np.random.default_rng(0))
        interval = expected.confidence_interval
        assert low[column] == pytest.approx(interval.low, abs=0.02)
        assert high[column] == pytest.approx(interval.high, abs=0.02)


def counts_of(together: np.ndarray, scene: np.ndarray, speech: np.ndarray) -> pd.DataFrame:
    nouns = [f"n{i}" for i in range(len(together))]
    return pd.DataFrame(
        {"env": nouns, "lan": nouns, "count": together, "env_count": scene, "lan_count": speech,
         "pmi": np.log(together / (scene * speech * 1e-4))}
    )  # fmt: skip


def test_r2_is_statsmodels() -> None:
    rng = np.random.default_rng(0)
    scene, speech = rng.integers(100, 3000, 30), rng.integers(100, 3000, 30)
    together = (np.sqrt(scene * speech) * rng.uniform(0.5, 2, 30)).astype(int)
    counts = counts_of(together, scene, speech)
    gain = 0.5 * np.log1p(together) + rng.normal(0, 0.3, 30)
    gains = pd.DataFrame({"target": counts["env"], "gain": gain})
    (row,) = cooccurrence_r2(gains, counts).to_dict("records")
    frequency = np.log1p(np.stack([scene, speech], 1).astype(float))
    line = sm.OLS(gain, sm.add_constant(np.log1p(together))).fit()
    reduced = sm.OLS(gain, sm.add_constant(frequency)).fit()
    full = sm.OLS(gain, sm.add_constant(np.column_stack([frequency, np.log1p(together)]))).fit()
    assert row["r2"] == pytest.approx(line.rsquared)
    assert row["slope"] == pytest.approx(line.params[1])
    assert row["partial_r2"] == pytest.approx((reduced.ssr - full.ssr) / reduced.ssr)
    assert row["pmi_r2"] == pytest.approx(sm.OLS(gain, sm.add_constant(counts["pmi"])).fit().rsquared)
    assert row["r2_low"] < row["r2"] < row["r2_high"]
    assert row["slope_low"] < 0.5 < row["slope_high"]


def test_partial_r2_tells_counts_from_frequency() -> None:
    """A gain that follows a noun's frequency has a high R² on counts, and no partial R² given frequency."""
    rng = np.random.default_rng(0)
    scene, speech = rng.integers(100, 3000, 60), rng.integers(100, 3000, 60)
    together = (speech * rng.uniform(0.8, 1.25, 60)).astype(int)
    counts = counts_of(together, scene, speech)
    gains = pd.DataFrame({"target": counts["env"], "gain": np.log1p(speech) + rng.normal(0, 0.05, 60)})
    (row,) = cooccurrence_r2(gains, counts).to_dict("records")
    assert row["r2"] > 0.9
    assert row["partial_r2"] < 0.1


def test_r2_means_nothing_without_a_gain_and_leaves_out_pairs_that_never_met() -> None:
    counts = counts_of(np.array([0, 10, 20, 40, 80]), np.full(5, 100), np.array([50, 60, 70, 80, 90]))
    gains = pd.DataFrame({"target": counts["env"], "gain": [-1.0, -2.0, 0.5, 0.1, 0.2]})
    (row,) = cooccurrence_r2(gains, counts).to_dict("records")
    assert np.isnan([row["r2"], row["slope"], row["partial_r2"], row["pmi_r2"]]).all()
    (row,) = cooccurrence_r2(gains.assign(gain=[1.0, 2, 3, 4, 5]), counts).to_dict("records")
    assert row["pmi_nouns"] == 4
    with pytest.raises(ValueError, match="no co-occurrence count for n4"):
        cooccurrence_r2(gains, counts[:4])


def test_the_peak_by_hand() -> None:
    of_step = {0: (np.nan, np.nan), 1: (0.2, 1.0), 2: (0.6, 2.0), 3: (0.1, -1.0)}
    rows = [("m", seed, step, r2 + 0.2 * seed * (step == 2), slope)
            for seed in (0, 1) for step, (r2, slope) in of_step.items()]  # fmt: skip
    (row,) = peak(pd.DataFrame(rows, columns=["model", "seed", "step", "r2", "slope"]).assign(nouns=9)).to_dict(
        "records"
    )
    assert (row["peak_step"], row["last_step"], row["seeds"]) == (2, 3, 2)
    assert (row["peak"], row["slope"], row["last"], row["last_slope"]) == pytest.approx((0.7, 2.0, 0.1, -1.0))
    assert row["fall"] == pytest.approx(0.6)


def test_over_training_by_hand() -> None:
    rows = [("m", seed, 5, noun, 1.0, 1.0 + gain, gain) for seed, shift in ((0, 0.0), (1, 0.2))
            for noun, gain in (("a", 1.0 + shift), ("b", 2.0 + shift), ("c", 3.0 + shift))]  # fmt: skip
    columns = ["model", "seed", "step", "target", "matched", "mismatched", "gain"]
    (row,) = over_training(pd.DataFrame(rows, columns=columns)).to_dict("records")
    assert row["gain"] == pytest.approx(2.1)
    assert row["p"] == row["p_holm"] == pytest.approx(stats.ttest_1samp([1.1, 2.1, 3.1], 0).pvalue)
    low, high = stats.t.interval(0.95, 1, loc=2.1, scale=0.1)
    assert (row["gain_seed_low"], row["gain_seed_high"]) == pytest.approx((low, high))
    assert (row["nouns"], row["seeds"], row["d"]) == (3, 2, pytest.approx(2.1))


def gains_of(rng: np.random.Generator, mean: float, nouns: int, contexts: int, seeds: int = 1) -> pd.DataFrame:
    of_noun, of_context, of_seed = (rng.normal(0, sd, n) for sd, n in ((1.0, nouns), (0.5, contexts), (0.3, seeds)))
    rows = []
    for v, c, s in itertools.product(range(nouns), range(contexts), range(seeds)):
        gain = mean + of_noun[v] + of_context[c] + of_seed[s] + rng.normal(0, 0.2)
        rows.append((s, c, f"n{v}", gain))
    return pd.DataFrame(rows, columns=["seed", "context", "target", "gain"])


def test_mixed_effects_of_a_balanced_design_by_analysis_of_variance() -> None:
    """In a crossed, balanced design the REML variances follow from mean squares, and so does the error of the mean."""
    table = gains_of(np.random.default_rng(0), 2.0, 20, 8)
    found = mixed_effects(table)
    values = table.pivot(index="target", columns="context", values="gain").to_numpy()
    a, b = values.shape
    grand, rows, columns = values.mean(), values.mean(1), values.mean(0)
    left = values - rows[:, None] - columns[None] + grand
    of_rest = (left**2).sum() / ((a - 1) * (b - 1))
    of_nouns, of_contexts = b * rows.var(ddof=1), a * columns.var(ddof=1)
    assert found["gain"] == pytest.approx(grand, abs=1e-6)
    assert found["sd_rest"] == pytest.approx(np.sqrt(of_rest), rel=1e-2)
    assert found["sd_target"] == pytest.approx(np.sqrt((of_nouns - of_rest) / b), rel=1e-2)
    assert found["sd_context"] == pytest.approx(np.sqrt((of_contexts - of_rest) / a), rel=1e-2)
    assert found["se"] == pytest.approx(np.sqrt((of_nouns + of_contexts - of_rest) / (a * b)), rel=1e-2)
    assert np.isnan(found["sd_seed"])
    assert (found["targets"], found["contexts"], found["seeds"]) == (20, 8, 1)


def test_mixed_effects_find_no_effect_where_there_is_none() -> None:
    found = [mixed_effects(gains_of(np.random.default_rng(i), 0.0, 15, 6, 3)) for i in range(20)]
    assert sum(row["p"] < 0.05 for row in found) <= 4  # 1 is expected; Wald's test is liberal with few groups
    assert mixed_effects(gains_of(np.random.default_rng(0), 3.0, 15, 6, 3))["p"] < 1e-6
    with pytest.raises(ValueError, match="at least two nouns"):
        mixed_effects(gains_of(np.random.default_rng(0), 0.0, 1, 6))
    with pytest.raises(ValueError, match="expected a column 'seed'"):
        mixed_effects(gains_of(np.random.default_rng(0), 0.0, 3, 6).drop(columns="seed"))


def test_a_fit_whose_matrix_is_singular_did_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"target": t, "context": c, "seed": 0, "gain": 0.1 * c + len(t)} for t in ("a", "bb", "ccc") for c in (0, 1)
    ]
    usual = mixed_effects(pd.DataFrame(rows))

    def singular(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr("statsmodels.regression.mixed_linear_model.MixedLM.fit", singular)
    found = mixed_effects(pd.DataFrame(rows))
    assert set(found) == set(usual)
    assert (found["targets"], found["contexts"], found["seeds"], found["converged"]) == (3, 2, 1, False)
    assert np.isnan([found[name] for name in ("gain", "low", "high", "se", "p", "sd_target", "sd_rest")]).all()
