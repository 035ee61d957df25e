"""Shares of flow in matched and mismatched examples, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from symground.analysis.heads.null_shares import share_table


def traced(shares: list[list[float]], gather: float = 0.5) -> xr.Dataset:
    """A trace of one layer whose heads take ``shares`` [examples][heads] of a row from the ENV noun."""
    values = np.array(shares)[:, None]  # [N,1,H]
    flow = np.zeros((*values.shape, 2, 2))
    flow[..., 0, 0], flow[..., 1, 1] = values, gather
    return xr.Dataset(
        {
            "flow": (("example", "layer", "head", "query_group", "key_group"), flow),
            "row_total": (("example", "layer", "head", "query_group"), np.ones((*values.shape, 2))),
            "matrix_total": (("example", "layer", "head"), np.full(values.shape, 4.0)),
        },
        {"layer": [3], "head": [0, 1], "query_group": ["prediction", "env"], "key_group": ["env", "event"]},
    )


def test_by_hand() -> None:
    matched = traced([[0.8, 0.1], [0.6, 0.4], [0.4, 0.1], [0.2, 0.0]])
    mismatched = traced([[0.1, 0.1], [0.1, 0.1], [0.1, 0.1], [0.5, 0.1]])
    table = share_table(matched, mismatched).set_index(["kind", "denominator", "layer", "head"])
    values = ["share", "null", "null_95", "selected", "null_selected", "examples", "threshold"]
    assert table.columns.tolist() == values
    first = table.loc[("aggregate", "row", 3, 0)]
    assert (first["share"], first["null"]) == pytest.approx((0.5, 0.2))
    assert (first["selected"], first["null_selected"], first["examples"]) == (0.75, 0.25, 4)
    assert set(table["threshold"]) == {0.3}
    assert first["null_95"] == pytest.approx(np.quantile([0.1, 0.1, 0.1, 0.5], 0.95))
    assert table.loc[("aggregate", "row", 3, 1), "selected"] == 0.25
    assert table.loc[("aggregate", "matrix", 3, 0), "share"] == pytest.approx(0.125)
    assert table.loc[("gather", "row", 3, 1), "share"] == pytest.approx(0.5)
    assert len(table) == 2 * 2 * 2
    with pytest.raises(ValueError, match="mismatched: expected 4 examples, got 1"):
        share_table(matched, traced([[0.1, 0.1]]))


def test_heads_that_a_layer_has_not_are_left_out() -> None:
    narrow = traced([[0.5, 0.1]])
    narrow["matrix_total"][0, 0, 1] = np.nan
    assert set(share_table(narrow, narrow)["head"]) == {0}
