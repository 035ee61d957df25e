"""What is read of attention as the numbers of a training log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from symground.analysis import Observation
from symground.errors import choice, described, is_number, number

#: The query group of all queries together.
ALL = "all"
Numbers = NDArray[np.floating[Any]]


def attention_metrics(
    seen: Observation | xr.Dataset, by: str | Sequence[float] = "layer", prefix: str = "attention"
) -> dict[str, float]:
    """The entropy, largest logit, mass between groups and flow that were read, as numbers for a log.

    Args:
        seen: an observation (:func:`symground.observe`), or the Dataset of one or of :func:`symground.attention`. Of
            what it has, its passes together give four numbers. ``entropy`` is the mean over queries that are not
            padding, in nats. ``largest_logit`` is the largest score of any query. ``mass/a/b`` is what a query of group
            a attends to group b, the mean over the queries of a; ``mass/all/b`` is the mean over the queries of all
            groups. ``flow/a/b`` is the share of a's flow that comes from b; queries without a loss have none.
        by: "layer", the mean over heads (of the largest logit, the maximum); "head"; or quantiles over all heads of all
            layers, numbers from 0 to 1.
        prefix: of the names.

    Returns:
        name → number: ``attention/entropy/layer3``, ``attention/mass/all/first/layer3``; by head
        ``…/layer3/head5``, by quantiles ``…/q0.5``. Heads without a number (Mamba-2 has no entropy) are left out, and
        so are the layers of cross-attention and of an encoder.

    Raises:
        ValueError: ``seen`` is nothing of these or has nothing to log, a group has the name "all", ``by`` or ``prefix``
            is none of these.
    """
    found = seen.dataset() if isinstance(seen, Observation) else seen
    if not isinstance(found, xr.Dataset):
        raise ValueError(f"seen: expected what symground.observe or symground.attention gives, got {described(seen)}")
    quantiles, prefix = quantiles_of(by), checked_prefix(prefix)
    named = {}
    for name, (values, largest) in _each(found).items():
        for place, value in _by(values, found.layer.values, by, quantiles, largest):
            named[f"{prefix}/{name}/{place}"] = value
    if not named:
        raise ValueError("seen: expected entropy, mass or flow (summary=True, groups=…), got none of them")
    return named


def checked_prefix(prefix: Any) -> str:
    if not isinstance(prefix, str) or not prefix:
        raise ValueError(f"prefix: expected a word, got {described(prefix)}")
    return prefix


def quantiles_of(by: Any) -> tuple[float, ...]:
    if isinstance(by, str):
        choice("by", by, ("layer", "head"))
        return ()
    if not isinstance(by, Sequence) or not by or not all(is_number(x) for x in by):
        raise ValueError(f"by: expected 'layer', 'head' or quantiles from 0 to 1, got {described(by)}")
    return tuple(number("by", x, "[0, 1]") for x in by)


def _each(found: xr.Dataset) -> Mapping[str, tuple[Numbers, bool]]:
    """Name of what is logged → numbers [layers, heads], and whether the largest stands for several heads."""
    each: dict[str, tuple[Numbers, bool]] = {}
    others = [dim for dim in ("step", "example") if dim in found.dims]
    if "entropy" in found:
        over = [*others, "query"]
        each["entropy"] = found.entropy.where(found.valid).mean(over, skipna=True).values, False
        each["largest_logit"] = found.score.where(found.valid).max(over, skipna=True).values, True
    if "mass" in found:
        if ALL in found.query_group.values:
            raise ValueError(f"seen: expected groups of other names than {ALL!r}, which stands for all queries")
        for key in found.key_group.values:
            mass, told = found.mass.sel(key_group=key), f"/{key}"
            # Mamba-2's is not known onto keys before the pass; such passes are in no mean.
            size = found.group_size.clip(0).where(mass.notnull()).sum(others)
            mass = mass.sum(others, min_count=1)
            of_all = mass.sum("query_group", min_count=1) / size.sum("query_group")
            each[f"mass/{ALL}{told}"] = of_all.values, False
            for query in found.query_group.values:
                each[f"mass/{query}{told}"] = (mass / size).sel(query_group=query).values, False
    if "flow" in found and bool(found.flow.notnull().any()):
        share = found.flow.sum(others, min_count=1) / found.row_total.sum(others, min_count=1)
        for query in found.query_group.values:
            for key in found.key_group.values:
                each[f"flow/{query}/{key}"] = share.sel(query_group=query, key_group=key).values, False
    return each


def _by(
    values: Numbers, layers: Sequence[int], by: str | Sequence[float], quantiles: Sequence[float], largest: bool
) -> list[tuple[str, float]]:
    """(place, number) of numbers [layers, heads]."""
    if quantiles:
        known = values[np.isfinite(values)]
        return [(f"q{q:g}", float(np.quantile(known, q))) for q in quantiles] if known.size else []
    places = []
    for layer, of_heads in zip(layers, values, strict=True):
        numbers = [float(x) for x in of_heads if np.isfinite(x)]
        if by == "head":
            places += [(f"layer{layer}/head{head}", float(x)) for head, x in enumerate(of_heads) if np.isfinite(x)]
        elif numbers:
            places.append((f"layer{layer}", max(numbers) if largest else sum(numbers) / len(numbers)))
    return places
