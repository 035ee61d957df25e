"""Stability of heads between halves of the contexts and between examples, against numbers computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import xarray as xr
from numpy.typing import ArrayLike

import symground as sg


def traced(shares: ArrayLike, contexts: Sequence[int], others: float = 1.0) -> xr.Dataset:
    """A trace of examples whose heads (layers × heads) have these shares of flow into the prediction. Row totals are 1,
    matrix totals 1 + ``others``. NaN marks a head that does not exist."""
    flow = np.asarray(shares, dtype=np.float32)
    there = np.where(np.isnan(flow), np.nan, 1.0)
    return xr.Dataset(
        {
            "flow": (("example", "layer", "head", "query_group", "key_group"), flow[..., None, None]),
            "row_total": (("example", "layer", "head", "query_group"), there[..., None]),
            "matrix_total": (("example", "layer", "head"), there * (1 + others)),
        },
        {
            "context": ("example", list(contexts)), "layer": range(flow.shape[1]), "head": range(flow.shape[2]),
            "query_group": ["prediction"], "key_group": ["image"],
        },
    )  # fmt: skip


def test_two_contexts_by_hand() -> None:
    shares = [[[0.5, 0.4], [0.1, 0.0]], [[0.5, 0.1], [0.4, 0.0]]]
    table = sg.stability(traced(shares, [0, 1]), draws=4)
    assert table["kind"].tolist() == ["aggregate"] * 2
    assert table["denominator"].tolist() == ["row", "matrix"]
    row, matrix = table.iloc[0], table.iloc[1]
    for end in ("", "_low", "_high"):
        # Ranks 4 3 2 1 and 4 2 3 1: 1 - 6 · 2 / (4 · 15). Sets {a, b} and {a, c}.
        assert row[f"rank{end}"] == matrix[f"rank{end}"] == pytest.approx(0.8)
        assert row[f"overlap{end}"] == pytest.approx(1 / 3)
        assert np.isnan(matrix[f"overlap{end}"])
    assert row["between"] == pytest.approx(1 / 3)
    assert np.isnan(matrix["between"])
    assert (row["heads"], row["heads_per_example"]) == (1, 2.0)
    assert (matrix["heads"], matrix["heads_per_example"]) == (0, 0.0)
    assert (table[["examples", "contexts", "draws"]] == [2, 2, 4]).all(axis=None)
    # At this threshold each example has one head by the share of the matrix, which is half that of the row.
    low = sg.stability(traced(shares, [0, 1]), threshold=0.25).iloc[1]
    assert (low["overlap"], low["heads"], low["heads_per_example"]) == (1.0, 1, 1.0)


def test_contexts_are_halved_and_not_examples() -> None:
    """The mean of a half is over all examples of its contexts; examples of a context are not separated."""
    shares = [[[0.6, 0.0]], [[0.2, 0.2]], [[0.0, 0.6]], [[0.0, 0.3]]]
    row = sg.stability(traced(shares, [5, 5, 7, 7]), draws=3).iloc[0]
    assert row["rank"] == pytest.approx(-1)  # 0.4 0.1 and 0 0.45
    assert row["overlap"] == 0
    # Sets {a}, {}, {b}, {b}: one of the six pairs has the same heads, the others have none in common.
    assert row["between"] == pytest.approx(np.mean([0, 0, 0, 0, 0, 1]))
    assert (row["heads"], row["heads_per_example"]) == (0, 3 / 4)
    assert (row["examples"], row["contexts"]) == (4, 2)


def test_means_and_ends_are_over_the_draws() -> None:
    """One of the three contexts is compared with the two others; each is equally likely."""
    shares = [[[0.9, 0.0, 0.1]], [[0.9, 0.2, 0.0]], [[0.0, 0.35, 0.7]]]
    row = sg.stability(traced(shares, [0, 1, 2]), draws=600).iloc[0]
    # 0 against 1, 2: 3 1 2 and 3 1 2; 1 against 0, 2: 3 2 1 and 3 1 2; 2 against 0, 1: 1 2 3 and 3 2 1.
    assert row["rank"] == pytest.approx(np.mean([1, 0.5, -1]), abs=0.1)
    assert (row["rank_low"], row["rank_high"]) == pytest.approx((-1, 1))
    # {a} and {a, c}; {a} and {a, c}; {b, c} and {a}.
    assert row["overlap"] == pytest.approx(np.mean([0.5, 0.5, 0]), abs=0.05)
    assert (row["overlap_low"], row["overlap_high"]) == (0, 0.5)


def test_heads_that_a_layer_lacks_are_none() -> None:
    """NaN marks heads that a layer lacks; they do not count as heads without flow."""
    shares = [[[0.5, 0.4, 0.3], [0.2, 0.1, np.nan]], [[0.1, 0.2, 0.3], [0.4, 0.5, np.nan]]]
    assert sg.stability(traced(shares, [0, 1]), draws=2)["rank"].tolist() == pytest.approx([-1, -1])


def test_where_all_heads_are_alike_there_is_no_rank() -> None:
    table = sg.stability(traced(np.full((4, 2, 2), 0.5), [0, 0, 1, 1]), draws=2)
    assert table[["rank", "rank_low", "rank_high"]].isna().all(axis=None)
    assert table["overlap"].iloc[0] == table["between"].iloc[0] == 1
    assert table["heads"].tolist() == [4, 0]


def test_of_many_examples_some_are_compared_whatever_their_order() -> None:
    """Questions may alternate regularly, so that every second or fourth is of one kind."""
    shares = np.zeros((4 * 300, 1, 2))
    shares[::2, 0, 0] = shares[1::2, 0, 1] = 0.8
    row = sg.stability(traced(shares, [i // 4 for i in range(4 * 300)]), draws=2).iloc[0]
    assert row["between"] == pytest.approx(0.5, abs=0.03)
    assert row["examples"] == 1200


def test_the_same_seed_gives_the_same() -> None:
    shares = np.random.default_rng(0).random((12, 3, 4))
    data = traced(shares, [i // 2 for i in range(12)])
    table = sg.stability(data, draws=20)
    assert table.equals(sg.stability(data, draws=20))
    other = sg.stability(data, draws=20, seed=1)
    assert not table.equals(other)
    assert table[["heads", "heads_per_example", "between"]].equals(other[["heads", "heads_per_example", "between"]])
    assert table["between"].between(0, 1).all()


def test_probes_have_gather_heads_too() -> None:
    flow = np.random.default_rng(0).random((4, 2, 2, 2, 2)).astype(np.float32)
    data = xr.Dataset(
        {
            "flow": (("example", "layer", "head", "query_group", "key_group"), flow),
            "row_total": (("example", "layer", "head", "query_group"), flow.sum(-1)),
            "matrix_total": (("example", "layer", "head"), flow.sum((-1, -2)) * 2),
        },
        {"context": ("example", [0, 0, 1, 1]), "layer": [0, 1], "query_group": ["prediction", "env"],
         "key_group": ["env", "event"]},
    )  # fmt: skip
    table = sg.stability(data, draws=2)
    assert table["kind"].tolist() == ["aggregate", "aggregate", "gather", "gather"]
    own = (flow[..., 1, 1] / flow[..., 1, :].sum(-1)).reshape(4, -1)
    assert table["heads_per_example"].iloc[2] == (own >= 0.3).sum(1).mean()


def test_one_draw_is_enough() -> None:
    shares = np.random.default_rng(0).random((4, 2, 2))
    row = sg.stability(traced(shares, [0, 0, 1, 1]), draws=1).iloc[0]
    assert row["rank"] == row["rank_low"] == row["rank_high"]
    assert row["draws"] == 1


def test_one_context_or_no_draw_is_refused() -> None:
    data = traced(np.full((3, 1, 2), 0.5), [4, 4, 4])
    with pytest.raises(ValueError, match="traced: expected at least two contexts, got 1"):
        sg.stability(data)
    with pytest.raises(ValueError, match="draws: expected an integer of at least 1, got 0"):
        sg.stability(traced(np.full((2, 1, 2), 0.5), [0, 1]), draws=0)
