"""The null of a head's share of flow: its share in mismatched examples. The threshold of 30 % is judged by it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from symground.analysis.heads.finding import DENOMINATORS, head_shares, kinds_of
from symground.errors import number

_COLUMNS = [
    "kind", "denominator", "layer", "head", "share", "null", "null_95", "selected", "null_selected", "examples",
    "threshold",
]  # fmt: skip


def share_table(matched: xr.Dataset, mismatched: xr.Dataset, threshold: float = 0.30) -> pd.DataFrame:
    """Each head's share of flow in matched examples, and in the same examples with another ENV noun (or image).

    A mismatched scene does not predict the target. The flow from its noun is what a head takes from any ENV noun at
    that position, grounded or not.

    Args:
        matched: a trace of the matched examples.
        mismatched: a trace of the mismatched examples that are paired with them (`Probes.mismatched`).
        threshold: the smallest share of an aggregate or gather head.

    Returns:
        A DataFrame with a row per kind, denominator, layer and head (from 0). Its columns:

        - kind, denominator, layer, head;
        - share, null: mean shares over the matched and over the mismatched examples;
        - null_95: the 95th percentile of the share over the mismatched examples;
        - selected, null_selected: the share of the examples in which the head reaches the threshold;
        - examples, threshold.

    Raises:
        ValueError: traces of different examples, or without flow.
    """
    threshold = number("threshold", threshold, "(0, 1]")
    if matched.sizes["example"] != mismatched.sizes["example"]:
        raise ValueError(f"mismatched: expected {matched.sizes['example']} examples, got {mismatched.sizes['example']}")
    parts = []
    for kind in kinds_of(matched):
        for denominator in DENOMINATORS:
            ours, null = (head_shares(trace, kind, denominator) for trace in (matched, mismatched))
            layers, heads = np.meshgrid(ours["layer"].values, ours["head"].values, indexing="ij")
            columns = {
                "layer": layers, "head": heads, "share": ours.mean("example"), "null": null.mean("example"),
                "null_95": null.quantile(0.95, "example"), "selected": (ours >= threshold).mean("example"),
                "null_selected": (null >= threshold).mean("example"),
            }  # fmt: skip
            frame = pd.DataFrame({name: np.asarray(values).ravel() for name, values in columns.items()})
            there = np.isfinite(matched.matrix_total.isel(example=0).values).ravel()  # NaN: heads of wider layers
            told = {"kind": kind, "denominator": denominator, "threshold": threshold}
            parts.append(frame[there].assign(**told, examples=ours.sizes["example"]))
    return pd.DataFrame(pd.concat(parts, ignore_index=True), columns=_COLUMNS)
