"""Saliency by region of the context: the parts that a model reads to predict the target."""

from __future__ import annotations

import xarray as xr

from symground.analysis.checks import check_trace
from symground.analysis.probing import PATCHES


def saliency_by_region(traced: xr.Dataset) -> xr.DataArray:
    """Layer saliency into the prediction position by region: (layer, region), mean over examples.

    Regions are the key groups and "other", the context's remaining tokens. The value of a region is the sum of I over
    its keys.
    """
    check_trace(traced, "traced")
    if "saliency" not in traced:
        raise ValueError(f"trace: expected one with saliency; {traced.attrs.get('note', 'it was made without')}")
    there = traced.prediction >= 0
    # (example, [target,] layer, key)
    at_p = traced.saliency.isel(query=traced.prediction.where(there, 0)).where(there, 0.0)
    at_p = at_p.sum([of for of in at_p.dims if of == "target"])
    groups = traced.key_group.values.tolist() if "key_group" in traced else []
    index = {name: [i] for i, name in enumerate(groups) if name != PATCHES} | {"other": [-1]}
    if PATCHES in groups:  # all patches that show the noun count as the noun
        index["env"].append(groups.index(PATCHES))
    sums = [at_p.where(traced.group.isin(i), 0.0).sum("key") for i in index.values()]
    by_region: xr.DataArray = xr.concat(sums, dim="region").assign_coords(region=list(index))
    mean: xr.DataArray = by_region.mean("example").transpose("layer", "region")
    return mean
