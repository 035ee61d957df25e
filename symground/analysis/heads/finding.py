"""Gather and aggregate heads, found per example from the saliency flow."""

from __future__ import annotations

import numpy as np
import xarray as xr

from symground.analysis.checks import check_trace
from symground.analysis.probing import IMAGE, PATCHES
from symground.errors import choice, number

HeadSet = frozenset[tuple[int, int]]

#: kind → the (query group, key group) whose flow is measured.
KINDS = {"aggregate": ("prediction", "env"), "gather": ("env", "event")}
DENOMINATORS = ("row", "matrix")


def find_heads(
    trace: xr.Dataset, kind: str = "aggregate", threshold: float = 0.30, denominator: str = "row"
) -> tuple[HeadSet, ...]:
    """The heads of each example whose share of flow reaches ``threshold``.

    Args:
        trace: from :func:`symground.trace`, with the groups "env" and, for gather heads, "event".
        kind: "aggregate", flow from the ENV noun's span into the prediction position, or "gather", flow from the rest
            of the ENV utterance into the noun. If an image shows the noun, "aggregate" is the flow from all patches
            that show it into the prediction position, and "gather" the flow into the last such patch from the patches
            before it. In a vision-language model, "aggregate" is the flow from the whole image into the prediction
            position.
        threshold: the smallest share.
        denominator: "row" divides by all flow into that position (or group of positions), "matrix" by all flow of the
            head. The study does not say which it uses; report both.

    Returns:
        A frozen set of (layer, head) for each example, both from 0.

    Raises:
        ValueError: an unknown kind or denominator, a threshold outside (0, 1], a trace without the groups.

    Source: arXiv 2510.13796 (30 % of the saliency flow), after Bick et al. 2025 (gather and aggregate heads).
    """
    check_trace(trace)
    threshold = number("threshold", threshold, "(0, 1]")
    shares = head_shares(trace, kind, denominator)
    layers = trace.layer.values
    return tuple(
        frozenset((int(layers[i]), int(head)) for i, head in zip(*np.nonzero(example >= threshold), strict=True))
        for example in shares.values
    )


def attended(seen: xr.Dataset, kind: str = "aggregate") -> xr.DataArray:
    """What each head attends between the groups of a kind (example, layer, head), of `symground.attention`."""
    return _between(seen.mass, *_groups_of(kind, seen), min_count=1)


def kinds_of(trace: xr.Dataset) -> list[str]:
    """The kinds of heads whose groups the trace has."""
    found = []
    for kind in KINDS:
        query, key = _groups_of(kind, trace)
        if query in _names(trace, "query_group") and key in _names(trace, "key_group"):
            found.append(kind)
    return found


def _between(sums: xr.DataArray, query: str, key: str, min_count: int | None = None) -> xr.DataArray:
    """Sums between two groups (example, layer, head); the other patches that show the noun count as the noun."""
    keys = [key, PATCHES] if PATCHES in sums.key_group.values else [key]
    found: xr.DataArray = sums.sel(query_group=query, key_group=keys, drop=True).sum("key_group", min_count=min_count)
    return found


def _groups_of(kind: str, trace: xr.Dataset) -> tuple[str, str]:
    query, key = KINDS[kind]
    there = _names(trace, "key_group")
    return query, IMAGE if key == "env" and "env" not in there and IMAGE in there else key


def _names(trace: xr.Dataset, dimension: str) -> list[str]:
    """The names of groups; a trace without groups has none."""
    return trace[dimension].values.tolist() if dimension in trace.coords else []


def head_shares(trace: xr.Dataset, kind: str = "aggregate", denominator: str = "row") -> xr.DataArray:
    """Each head's share of flow (example, layer, head), 0 for a head without flow; see :func:`find_heads`."""
    check_trace(trace)
    choice("kind", kind, KINDS)
    choice("denominator", denominator, DENOMINATORS)
    if "matrix_total" not in trace:
        raise ValueError(f"trace: expected one with the flow of heads; {trace.attrs.get('note', 'it has none')}")
    if "target" in trace.matrix_total.dims:
        raise ValueError(
            "trace: expected one flow an example, got one for each token of a span; trace.isel(target=0) is the first's"
        )
    query, key = _groups_of(kind, trace)
    for dimension, name in (("query_group", query), ("key_group", key)):
        there = _names(trace, dimension)
        if name not in there:
            raise ValueError(
                f"trace: {kind} heads need the {dimension} {name!r}; it has {', '.join(there) or 'none'}. "
                "symground.trace(model, probes) has what both kinds need, and of ids of your own groups={…} names it"
            )
    flow = _between(trace.flow, query, key)
    total = trace.row_total.sel(query_group=query, drop=True) if denominator == "row" else trace.matrix_total
    shares: xr.DataArray = (flow / total.where(total > 0)).fillna(0.0).rename("share")
    return shares
