"""The monitor fits nothing on the half that it is evaluated on: heads and curves are planted in one half at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from symground.analysis.heads import monitoring
from symground.analysis.probing.answering import Choices

CONTEXTS, NOUNS, SEED = 6, 10, 2
N = CONTEXTS * NOUNS
CONTEXT = np.repeat(np.arange(CONTEXTS), NOUNS)
FIRST = np.isin(CONTEXT, np.random.default_rng(SEED).permutation(CONTEXTS)[: CONTEXTS // 2])


def traced(shares: NDArray[np.float64]) -> xr.Dataset:
    """A trace of N examples; [N,2] are the shares of the row that its two heads take from the ENV noun."""
    flow = shares[:, None, :]
    return xr.Dataset(
        {
            "flow": (("example", "layer", "head", "query_group", "key_group"), flow[..., None, None]),
            "row_total": (("example", "layer", "head", "query_group"), np.ones((*flow.shape, 1))),
            "matrix_total": (("example", "layer", "head"), np.full(flow.shape, 2.0)),
        },
        {"context": ("example", CONTEXT), "layer": [0], "head": [0, 1], "query_group": ["prediction"],
         "key_group": ["env"]},
    )  # fmt: skip


def looked(mass: NDArray[np.float64]) -> xr.Dataset:
    """What `attention` reads of N examples; [N,2] are what the two heads attend to the ENV noun."""
    dims = ("example", "layer", "head", "query_group", "key_group")
    return xr.Dataset(
        {"mass": (dims, mass[:, None, :, None, None])}, {"query_group": ["prediction"], "key_group": ["env"]}
    )


#: Detectors that have the name of their one column.
SINGLE = ("flow", "entropy", "attention")
MASS = np.random.default_rng(5).random((N, 2))


class Asked:
    """The part of the probes' interface that the monitor uses."""

    contexts, nouns = range(CONTEXTS), range(NOUNS)

    class Found(SimpleNamespace):
        def with_words(self, words: Any) -> Any:
            return self

    def matched(self) -> Any:
        return self.Found(context=CONTEXT, noun=np.tile(np.arange(NOUNS), CONTEXTS))


def run(
    monkeypatch: pytest.MonkeyPatch, matched: NDArray[np.float64], own: NDArray[np.float64], wrong: NDArray[np.bool_],
    **more: Any,
) -> Any:  # fmt: skip
    rng = np.random.default_rng(9)
    chosen = Choices(np.zeros(N, int), ~wrong, rng.random(N), rng.random(N), rng.random(N), ((0,),) * N)
    of = {True: traced(matched), False: traced(own)}
    asked = Asked()
    for check in ("mixers", "check_fits"):
        monkeypatch.setattr(monitoring, check, lambda *_, **__: None)
    monkeypatch.setattr(monitoring, "choices", lambda *_, **__: chosen)
    monkeypatch.setattr(monitoring, "trace", lambda model, given, **__: of[given is asked])
    monkeypatch.setattr(monitoring, "attention", lambda *_, **__: looked(MASS))
    return monitoring.monitor(None, asked, seed=SEED, **more)


def planted() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Head 0 is an aggregate head in the first half only, head 1 in the other; shares for the model's choice differ."""
    matched = np.stack([np.where(FIRST, 0.9, 0.0), np.where(FIRST, 0.0, 0.8)], 1)
    rng = np.random.default_rng(1)
    return matched, rng.random((N, 2))


def test_heads_are_those_of_the_other_half(monkeypatch: pytest.MonkeyPatch) -> None:
    matched, own = planted()
    wrong = np.random.default_rng(2).random(N) < 0.4
    found = run(monkeypatch, matched, own, wrong)
    np.testing.assert_allclose(found.examples["flow"], np.where(FIRST, own[:, 1], own[:, 0]))
    np.testing.assert_allclose(found.examples["head_attention"], np.where(FIRST, MASS[:, 1], MASS[:, 0]))
    np.testing.assert_allclose(found.examples["attention"], MASS.mean(1))
    assert found.examples["half"].tolist() == FIRST.astype(int).tolist()
    assert (found.detectors["heads"] == 1).all()
    # If no head of the other half reaches the threshold, its strongest head is used.
    weak = run(monkeypatch, matched / 9, own, wrong)
    np.testing.assert_allclose(weak.examples["flow"], found.examples["flow"])
    # One half uses the mean of both heads, the other uses one head.
    both = matched.copy()
    both[FIRST] = 0.5
    found = run(monkeypatch, both, own, wrong)
    np.testing.assert_allclose(found.examples["flow"], np.where(FIRST, own[:, 1], own.mean(1)))
    assert (found.detectors["heads"] == 1.5).all()
    # The share of the matrix is half as large here.
    of_matrix = run(monkeypatch, matched, own, wrong, denominator="matrix")
    np.testing.assert_allclose(of_matrix.examples["flow"], np.where(FIRST, own[:, 1], own[:, 0]) / 2)


@pytest.mark.parametrize("half", [True, False])
def test_a_half_is_judged_by_nothing_of_itself(monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    matched, own = planted()
    wrong = np.random.default_rng(2).random(N) < 0.4
    here = half == FIRST
    columns = [f"p_{name}" if name in SINGLE else name for name in monitoring.DETECTORS]
    found = run(monkeypatch, matched, own, wrong).examples[columns]
    # Inverting the answers of this half changes the predictions for the other half only.
    turned = run(monkeypatch, matched, own, np.where(here, ~wrong, wrong)).examples[columns]
    np.testing.assert_allclose(turned[here], found[here])
    assert (abs(turned[~here] - found[~here]).max() > 0.01).all()
    # The shares of this half in matched examples select only the heads of the other half.
    swapped = matched.copy()
    swapped[here] = swapped[here][:, ::-1]
    flow = run(monkeypatch, swapped, own, wrong).examples["flow"].to_numpy()
    np.testing.assert_allclose(flow[here], np.where(FIRST, own[:, 1], own[:, 0])[here])
    # The flow of one example changes its own prediction, and no other in its half.
    one = int(np.flatnonzero(here)[3])
    moved = own.copy()
    moved[one] += 5.0
    again = run(monkeypatch, matched, moved, wrong).examples[columns]
    others = here.copy()
    others[one] = False
    np.testing.assert_allclose(again[others], found[others])
    assert again.loc[one, "p_flow"] != pytest.approx(found.loc[one, "p_flow"], abs=1e-3)


def test_curves_and_figures_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each detector's probabilities are fitted by statsmodels on the other half, and their statistics recomputed."""
    matched, own = planted()
    wrong = np.random.default_rng(2).random(N) < 0.4
    found = run(monkeypatch, matched, own, wrong)
    table, told = found.examples, found.detectors.set_index("detector")
    looks_at = {"flow": ["flow"], "max probability": ["probability"], "entropy": ["entropy"],
                "attention": ["attention"], "attention of the heads": ["head_attention"],
                "probability and entropy": ["probability", "entropy"],
                "all three": ["flow", "probability", "entropy"]}  # fmt: skip
    assert told.index.tolist() == list(looks_at)
    for name, columns in looks_at.items():
        predicted = np.empty(N)
        for half in (0, 1):
            there, other = table["half"] == half, table["half"] != half
            centre, spread = table.loc[other, columns].mean(), table.loc[other, columns].std(ddof=0)
            seen = sm.add_constant((table[columns] - centre) / spread)
            fitted = sm.Logit(wrong[other].astype(float), seen[other]).fit_regularized(alpha=0.1, disp=0)
            predicted[there] = fitted.predict(seen[there])
        said = table[f"p_{name}" if name in SINGLE else name].to_numpy()
        np.testing.assert_allclose(said, predicted, atol=1e-6)
        row = told.loc[name]
        pairs = [(a > b) + 0.5 * (a == b) for a in said[wrong] for b in said[~wrong]]
        assert row["auroc"] == pytest.approx(np.mean(pairs))
        assert row["brier"] == pytest.approx(np.mean((said - wrong) ** 2))
        assert row["brier_base"] == pytest.approx(wrong.mean() * (1 - wrong.mean()))

        def auroc(index: Any, axis: int = -1, said: Any = said) -> Any:
            found = []
            for rows in index.astype(int).reshape(-1, N):
                ones = wrong[rows].sum()
                ranks = stats.rankdata(said[rows])[wrong[rows]].sum()
                found.append((ranks - ones * (ones + 1) / 2) / (ones * (N - ones)))
            return np.array(found).reshape(index.shape[:-1])

        if name == "flow":
            drawn = stats.bootstrap(
                (np.arange(float(N)),), auroc, n_resamples=2000, method="percentile", vectorized=True, batch=200,
                rng=np.random.default_rng(SEED),
            ).confidence_interval  # fmt: skip
            assert (row["auroc_low"], row["auroc_high"]) == pytest.approx((drawn.low, drawn.high))
        bins = found.calibration[found.calibration["detector"] == name]
        of_bin = np.minimum((said * 10).astype(int), 9)
        assert bins["bin"].tolist() == sorted(set(of_bin))
        for bin_, predicted_, observed, count in bins[["bin", "predicted", "observed", "count"]].itertuples(
            index=False
        ):
            assert predicted_ == pytest.approx(said[of_bin == bin_].mean())
            assert observed == pytest.approx(wrong[of_bin == bin_].mean())
            assert count == (of_bin == bin_).sum()
    assert (told[["wrong", "examples", "contexts", "nouns"]] == [wrong.sum(), N, CONTEXTS, NOUNS]).all(axis=None)
    assert isinstance(table, pd.DataFrame)


def test_where_the_other_half_has_one_kind_of_answer_its_share_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    matched, own = planted()
    wrong = np.where(FIRST, np.arange(N) % 2 == 0, False)
    found = run(monkeypatch, matched, own, wrong).examples
    assert (found.loc[FIRST, "p_flow"] == 0).all()
    assert found.loc[~FIRST, "p_flow"].between(0, 1, inclusive="neither").all()
