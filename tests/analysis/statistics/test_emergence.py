"""The emergence step of the link, against curves computed by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from symground.analysis.statistics.emergence_step import emergence as of_gains
from symground.analysis.statistics.information_gain import gain_by_context

STEPS = (0, 10, 20, 40)


def scores(gains: dict[str, list[list[float]]], seeds: int = 1) -> pd.DataFrame:
    """Scores from noun → a curve of gains per context; matched surprisal is 1, mismatched 1 + gain."""
    nouns = list(gains)
    rows = [
        ("m", seed, step, c, env, noun, 1.0 if env == noun else 1.0 + curve[i])
        for seed in range(seeds)
        for noun, curves in gains.items()
        for c, curve in enumerate(curves)
        for i, step in enumerate(STEPS)
        for env in nouns
    ]
    return pd.DataFrame(rows, columns=["model", "seed", "step", "context", "env", "target", "surprisal"])


def emergence(table: pd.DataFrame, **more: object) -> pd.DataFrame:
    return of_gains(gain_by_context(table), **more)


def test_by_hand() -> None:
    found = emergence(
        scores({
            "dog": [[0, 0.5, 1.5, 3], [0, 0.5, 1.5, 3]],  # passes 1 halfway from 10 to 20
            "cat": [[2, 0, 0, 5], [2, 0, 0, 5]],  # above, then below, then from 20 to 40 a fifth of the way
            "ball": [[2, 2, 2, 2], [3, 3, 3, 3]],  # from the beginning
            "book": [[0, 2, 2, 1], [0, 2, 2, 1]],  # not above at the end
        }),
    ).set_index("unit")  # fmt: skip
    assert found.loc[["dog", "cat", "ball", "book"], "step"].tolist() == [15.0, 24.0, 0.0, np.inf]
    assert found.loc["dog", ["low", "high", "count", "seeds"]].tolist() == [15.0, 15.0, 2, 1]
    # The mean of the four curves is above 1 at every checkpoint.
    means = np.mean([[0, 0.5, 1.5, 3], [2, 0, 0, 5], [2.5] * 4, [0, 2, 2, 1]], axis=0)
    assert (means > 1).all()
    assert found.loc["m", "step"] == 0.0
    assert found.loc["animals", "count"] == 2  # dog and cat
    assert found.loc["animals", "step"] == pytest.approx(20 + (1 - 0.75) / (4 - 0.75) * 20)


def test_intervals_are_over_contexts_and_over_nouns() -> None:
    rng = np.random.default_rng(0)
    curves = {f"n{i}": [[0, 0.8 + rng.normal(0, 0.1), 1.2 + rng.normal(0, 0.1), 3] for _ in range(8)] for i in range(5)}
    found = emergence(scores(curves, seeds=2), categories={f"n{i}": "things" for i in range(5)})
    assert set(found["level"]) == {"noun", "category", "model"}
    assert (found["low"] < found["step"]).all()
    assert (found["step"] < found["high"]).all()
    assert found.set_index("unit").loc["n0", ["count", "seeds"]].tolist() == [16, 2]
    assert found.set_index("unit").loc["things", "count"] == 5


def test_some_that_never_pass_make_an_open_interval() -> None:
    found = emergence(scores({"a": [[0, 0, 0, 3]] * 2 + [[0, 0, 0, -3]], "b": [[0, 0, 0, 0.0]] * 3})).set_index("unit")
    assert found.loc["a", "step"] == np.inf  # the mean ends at 1, not above
    assert np.isfinite(found.loc["a", "low"])
    assert found.loc["a", "high"] == np.inf
    assert found.loc["b", ["step", "low", "high"]].tolist() == [np.inf] * 3
    one = emergence(scores({"a": [[0, 0, 0, 3]], "b": [[0, 0, 0, 3]]})).set_index("unit")
    assert np.isnan(one.loc["a", "low"])


def test_runs_that_lack_a_checkpoint_are_named() -> None:
    table = scores({"a": [[0, 0, 0, 3]], "b": [[0, 0, 0, 3]]}, seeds=2)
    with pytest.raises(ValueError, match=r"the runs of m have not the same checkpoints; seeds \[1\] lack some"):
        emergence(table[(table["seed"] == 0) | (table["step"] != 20)])
    with pytest.raises(ValueError, match="scores: expected a column 'env'"):
        emergence(table.drop(columns="env"))
    with pytest.raises(ValueError, match="gains: expected a column 'gain'"):
        of_gains(table)
