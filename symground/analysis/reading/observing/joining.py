"""The passes of a block as one Dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

#: Attributes of a pass that become coordinates of its step.
STEP = ("step", "text", "past", "queries", "complete")


def joined(passes: Sequence[xr.Dataset]) -> xr.Dataset:
    """Passes along a first dimension step, filled up to the largest sizes: with NaN, -1 in integers, False in masks."""
    names = {name: None for one in passes for name in one.data_vars}
    found = xr.Dataset({name: _stacked([one.get(name) for one in passes]) for name in names})
    coordinates = {name: "example" in one[name].dims for one in passes for name in one.coords}
    each = [name for name, of_examples in coordinates.items() if of_examples]
    found = found.assign_coords({name: _stacked([one.get(name) for one in passes]) for name in each})
    known = {name: one[name] for one in passes for name in one.coords if not coordinates[name]}
    of_steps = {name: ("step", [one.attrs[name] for one in passes]) for name in STEP}
    attrs = {name: x for name, x in passes[0].attrs.items() if name not in STEP}
    return found.assign_coords({**known, **of_steps}).assign_attrs(attrs)


def joined_bytes(passes: Sequence[xr.Dataset]) -> int:
    """The size of the variables that `joined` makes."""
    total = 0
    for name in {name: None for one in passes for name in one.data_vars}:
        arrays = [one[name] for one in passes if name in one]
        sizes = [max(x.shape[axis] for x in arrays) for axis in range(arrays[0].ndim)]
        total += len(passes) * math.prod(sizes) * arrays[0].dtype.itemsize
    return total


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
