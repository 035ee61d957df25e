"""Properties of every table of an analysis: its order does not depend on its input's, and its defaults are fixed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pkgutil import walk_packages
from typing import Any

import numpy as np
import pandas as pd
import pytest

import symground as sg
from symground import analysis
from symground.analysis.statistics.curves import over_training
from symground.analysis.statistics.emergence_step import emergence
from symground.analysis.statistics.information_gain import gain_by_context
from symground.analysis.statistics.r2 import cooccurrence_r2, peak

NOUNS = ["cup", "ball", "dog", "car"]  # in no order


def runs() -> pd.DataFrame:
    """The results' table "surprisal" of two models, two seeds and three checkpoints."""
    keys = [(m, s, t) for m in ("mamba2", "gpt2") for s in (1, 0) for t in (20, 0, 10)]
    rows = [(*key, c, u, v) for key in keys for c in (1, 0, 2) for u in NOUNS for v in NOUNS]
    table = pd.DataFrame(rows, columns=["model", "seed", "step", "context", "env", "target"])
    # The sums of these numbers are exact, so that they do not depend on the order.
    return table.assign(surprisal=np.random.default_rng(0).integers(1, 400, len(table)) / 64)


def scores() -> pd.DataFrame:
    table = runs()
    return table[(table["model"] == "gpt2") & (table["seed"] == 0) & (table["step"] == 10)]


def by_noun() -> pd.DataFrame:
    """The results' table "gain"."""
    keys = ["model", "seed", "step", "target"]
    return gain_by_context(runs()).groupby(keys)[["matched", "mismatched", "gain"]].mean().reset_index()


def with_r2() -> pd.DataFrame:
    table = runs()[["model", "seed", "step"]].drop_duplicates(ignore_index=True)
    return table.assign(r2=np.arange(len(table)) / 16, slope=1.0, nouns=4)


def of_counts(gains: pd.DataFrame) -> pd.DataFrame:
    counts = pd.DataFrame({"env": NOUNS, "lan": NOUNS, "count": [1, 5, 2, 9], "pmi": [0.5, 0.1, 0.7, 0.2]})
    found = cooccurrence_r2(gains, counts)
    return found[["r2", "slope", "pmi_r2", "pmi_slope", "mean_gain"]]  # intervals resample rows


TABLES: dict[str, tuple[Callable[[], pd.DataFrame], Callable[[pd.DataFrame], pd.DataFrame], list[str]]] = {
    "gain": (scores, sg.gain, ["target"]),
    "gain_by_context": (runs, gain_by_context, ["model", "seed", "step", "context", "target"]),
    "over_training": (by_noun, over_training, ["model", "step"]),
    "emergence": (lambda: gain_by_context(runs()), emergence, ["model"]),
    "peak": (with_r2, peak, ["model"]),
    "r2": (lambda: sg.gain(scores()).assign(gain=lambda table: table["gain"] + 9), of_counts, []),
}


@pytest.mark.parametrize("name", TABLES)
def test_row_order_does_not_matter(name: str) -> None:
    make, table_of, keys = TABLES[name]
    given = make()
    found = table_of(given)
    order = np.random.default_rng(1).permutation(len(given))
    pd.testing.assert_frame_equal(table_of(given.iloc[order]), found)
    if keys:
        pd.testing.assert_frame_equal(found, found.sort_values(keys, kind="stable"))


def test_columns_of_behaviour_over_training() -> None:
    ends = ("", "_low", "_high", "_seed_low", "_seed_high")
    measures = [f"{name}{end}" for name in ("matched", "mismatched", "gain") for end in ends]
    tests = ["p", "p_holm", "p_permutation", "d", "nouns", "seeds"]
    assert list(over_training(by_noun())) == ["model", "step", *measures, *tests]


def functions() -> dict[str, Callable[..., Any]]:
    """The public functions of the package and of every module of analysis, by module and name."""
    below = walk_packages(analysis.__path__, f"{analysis.__name__}.")
    rooms = [sg, *(importlib.import_module(module.name) for module in below)]
    return {
        f"{value.__module__}.{name}": value
        for room in rooms for name in dir(room)
        if inspect.isfunction(value := getattr(room, name)) and not name.startswith("_")
    } | {"TunedLens.fit": sg.TunedLens.fit}  # fmt: skip


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        ("seed", {0}), ("level", {0.95}), ("threshold", {0.3, 1.0}), ("draws", {20, 100, 200}), ("window", {512}),
        ("factors", {(0.0, 0.5, 1.5, 2.0, 3.0)}), ("steps", {250}), ("length", {128}), ("share", {0.125}),
        ("learning_rate", {1e-3}), ("warmup", {0.1}), ("weight_decay", {1e-3}),
    ],
)  # fmt: skip
def test_a_parameter_has_the_same_default_in_all_functions(parameter: str, values: set[object]) -> None:
    """A threshold is of a head's share of flow or of a gain in nats; draws differ between analyses."""
    found = {
        name: inspect.signature(function).parameters[parameter].default
        for name, function in functions().items() if parameter in inspect.signature(function).parameters
    }  # fmt: skip
    assert set(found.values()) - {inspect.Parameter.empty, None} == values, found
