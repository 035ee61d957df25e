"""The passes of a block as one Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from symground.analysis.reading.layers import variable_key

#: Attributes of a pass that become coordinates of its step.
STEP = ("step", "past", "queries")


def joined(passes: Sequence[xr.Dataset]) -> xr.Dataset:
    """Passes along a first dimension step, filled up to the largest sizes: with NaN, -1 in integers, False in masks."""
    names = {name: None for one in passes for name in one.data_vars}
    found = xr.Dataset({name: _stacked([one.get(name) for one in passes]) for name in names})
    each = [name for name in ("row_position", "valid", "group_size") if any(name in one.coords for one in passes)]
    found = found.assign_coords({name: _stacked([one.get(name) for one in passes]) for name in each})
    known = {name: passes[0][name] for name in ("layer", "kind", "head")}
    of_groups = {name: one[name] for one in passes for name in ("query_group", "key_group") if name in one.coords}
    of_steps = {name: ("step", [one.attrs[name] for one in passes]) for name in STEP}
    attrs = {name: x for name, x in passes[0].attrs.items() if name not in STEP}
    return variable_key(found.assign_coords({**known, **of_groups, **of_steps}).assign_attrs(attrs))


def _stacked(given: Sequence[xr.DataArray | None]) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Arrays of the same dimensions along a first dimension step."""
    arrays = [None if x is None else np.asarray(x) for x in given]
    like = next(x for x in given if x is not None)
    sizes = tuple(max(x.shape[axis] for x in arrays if x is not None) for axis in range(like.ndim))
    found = np.full((len(given), *sizes), {"i": -1, "b": False}.get(like.dtype.kind, np.nan), like.dtype)
    for to, x in zip(found, arrays, strict=True):
        if x is not None:
            to[tuple(slice(size) for size in x.shape)] = x
    return ("step", *map(str, like.dims)), found
