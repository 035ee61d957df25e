"""The numbers of the tables on gain and emergence, each against one recomputed from the results."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from symground.data.words import cdi_categories
from tests.reports.tables.recomputed import (
    AGES,
    LAST,
    MODELS,
    Values,
    bca,
    emergence_of,
    means,
    of,
    over_seeds,
    told_of,
)
from tests.reports.tables.shown import Row, compare, ends, probability, two, whole


def test_the_last_checkpoint_and_every_other(sheets: Any, table: Any) -> None:
    gains = table("gain")
    final, training = [], []
    for model in MODELS:
        for step, found in told_of(gains, model).items():
            part = of(gains, model=model, step=step)
            row = {"model": model, "step": step}
            measured = {name: means(part, "target", name) for name in ("matched", "mismatched", "gain")}
            with_ends = {name: f"{two(x.mean())} {ends(*bca(x))}" for name, x in measured.items()}
            corrected = probability(found["holm"])
            training.append({**row, **with_ends, "p": corrected, "nouns": 6, "seeds": 2})
            if step == LAST:
                flips = [np.mean(found["gains"] * signs) for signs in itertools.product((1, -1), repeat=6)]
                permuted = np.mean(np.abs(flips) >= abs(found["gains"].mean()) - 1e-12)
                final.append({
                    **row, **{name: two(x.mean()) for name, x in measured.items()},
                    "over nouns": ends(*bca(measured["gain"])),
                    "over seeds": ends(*over_seeds(means(part, "seed", "gain"))), "p": corrected,
                    "permutation p": probability(permuted), "d": two(found["d"]), "nouns": 6, "seeds": 2,
                })  # fmt: skip
    compare(sheets["final"], final)
    compare(sheets["training"], training)


def test_emergence_and_ages(sheets: Any, table: Any) -> None:
    rows: list[Row] = []
    for model in MODELS:
        steps, found = emergence_of(table("contexts"), model)
        rows += [
            {
                **row,
                **{
                    name: "–" if np.isnan(row[name]) else whole(np.round(row[name])) for name in ("step", "low", "high")
                },
            }
            for row in found
        ]
        (shown,) = of(pd.DataFrame(sheets["acquisition"]), model=model).to_dict("records")
        nouns = list(AGES)
        of_steps, of_months = (stats.rankdata([values[v] for v in nouns]) for values in (steps, AGES))
        assert shown["correlation"] == two(np.corrcoef(of_steps, of_months)[0, 1])
        assert shown["p"] == probability(stats.spearmanr(of_steps, of_months).pvalue)
        assert shown["nouns"] == "6"
        assert shown["seeds"] == "2"
        assert shown["never emerged"] == "0"

        def correlations(index: Values, axis: int = -1, pairs: Any = (of_steps, of_months)) -> Values:
            rows = index.astype(int).reshape(-1, 6)
            of_rows = [[stats.rankdata(x[row]) for x in pairs] for row in rows]
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.array([np.corrcoef(*both)[0, 1] for both in of_rows]).reshape(index.shape[:-1])

        drawn = stats.bootstrap(
            (np.arange(6.0),), correlations, n_resamples=2000, method="percentile", vectorized=True, batch=200,
            rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        assert (shown["low"], shown["high"]) == (two(drawn.low), two(drawn.high))
    compare(sheets["emergence"], rows)


def test_nouns(sheets: Any, table: Any) -> None:
    gains, known, rows = table("gain"), cdi_categories(), []
    for model in MODELS:
        steps, _ = emergence_of(table("contexts"), model)
        of_model = []
        for noun in sorted(steps):
            part = of(gains, model=model, step=LAST, target=noun)
            numbers = {name: part[name].mean() for name in ("matched", "mismatched", "gain", "gain_low", "gain_high")}
            of_model.append(
                (numbers, {"model": model, "noun": noun, "category": known[noun]}, whole(round(steps[noun])))
            )
        for numbers, names, step in sorted(of_model, key=lambda row: -row[0]["gain"]):
            shown = {name.replace("gain_", ""): two(x) for name, x in numbers.items()}
            rows.append({**names, **shown, "seeds": 2, "emergence step": step})
    compare(sheets["nouns"], rows)


def test_mixed_effects(sheets: Any, table: Any) -> None:
    """Other tests check the numbers. This one checks that each is under its name, for the model and its last step."""
    from symground.analysis.statistics.mixed_models import mixed_effects

    rows = []
    for model in MODELS:
        found = mixed_effects(of(table("contexts"), model=model, step=LAST))
        floats = {"gain": "gain", "low": "low", "high": "high", "se": "se"}
        row = {"model": model, "step": LAST, **{name: two(found[key]) for name, key in floats.items()}}
        row |= {"p": probability(found["p"])}
        spread = {"sd noun": "sd_target", "sd context": "sd_context", "sd seed": "sd_seed", "sd rest": "sd_rest"}
        row |= {name: two(found[key]) for name, key in spread.items()}
        rows.append({**row, "nouns": 6, "contexts": 2, "seeds": 2, "converged": "yes" if found["converged"] else "no"})
    compare(sheets["mixed"], rows)
