"""The results of a trace in host memory: which layers have them, their names, dimensions and coordinates."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from symground.analysis.probing import Targets
from symground.analysis.tracing.split import Split
from symground.models import Mixer

#: The dimensions of each variable of a trace.
DIMS = {
    "saliency": ("example", "layer", "query", "key"),
    "flow": ("example", "layer", "head", "query_group", "key_group"),
    "row_total": ("example", "layer", "head", "query_group"),
    "matrix_total": ("example", "layer", "head"),
    "rows": ("example", "layer", "head", "key"),
    "input_x_gradient": ("example", "key"),
}


def scores_of(targets: Targets, each: NDArray[np.float32], several: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables and coordinates of surprisals [N,R]; with ``several`` targets, those of each beside the sum."""
    positions, ids, there = (x.cpu().numpy() for x in (*targets, targets.there))
    if not several:
        coordinates = {"prediction": ("example", positions[:, 0]), "target_token": ("example", ids[:, 0])}
        return {"surprisal": ("example", each[:, 0])}, coordinates
    of = "example", "target"
    found = {
        "surprisal": ("example", each.sum(1, dtype=np.float64).astype(np.float32)),
        "token_surprisal": (of, np.where(there, each, np.float32(np.nan))),
    }
    return found, {"prediction": (of, positions), "target_token": (of, ids)}


def without_empty(found: xr.Dataset) -> xr.Dataset:
    """The Dataset without what has no number: variables between groups that there are none of. netCDF stores none."""
    return found.drop_dims([name for name, size in found.sizes.items() if not size])


def blank(arrays: Mapping[str, NDArray[np.float32]], targets: Targets, times: int = 1) -> None:
    """Put NaN into results [N,R,…] for the targets that an example, or each of its so many matrices, lacks."""
    absent = np.repeat(~targets.there.cpu().numpy(), times, 0)
    for value in arrays.values():
        value[absent] = np.nan


def dims_of(name: str, per_token: bool) -> tuple[str, ...]:
    """The dimensions of a variable, with that of the targets where each has its own."""
    first, *others = DIMS[name]
    return (first, "target", *others) if per_token else DIMS[name]


def coordinates_of(layers: tuple[Mixer, ...]) -> dict[str, Any]:
    """The coordinates of the layers and heads in a trace."""
    return {
        "layer": [mixer.layer for mixer in layers], "kind": ("layer", [mixer.kind for mixer in layers]),
        "head": np.arange(most_heads(layers)),
    }  # fmt: skip


def most_heads(layers: tuple[Mixer, ...]) -> int:
    return max((mixer.heads for mixer in layers), default=0)


class Results:
    """Results for N examples and L layers in host memory, filled pass by pass and layer by layer."""

    def __init__(
        self, layers: int, heads: int, examples: int, lengths: tuple[int, int], groups: tuple[int, int], saliency: bool,
        rows: bool, targets: int | None = None,
    ) -> None:  # fmt: skip
        """``lengths`` and ``groups`` are the numbers of queries and keys, and of their groups.

        With ``targets``, each example has results for so many targets, [N,R,L,…] in place of [N,L,…].
        """
        (queries, keys), count = lengths, (layers,) if targets is None else (targets, layers)
        self.groups = groups
        num_query, num_key = groups

        def numbers(*shape: int, fill: float | None = None) -> NDArray[np.float32]:
            shape = (examples, *count, *shape)
            return np.empty(shape, np.float32) if fill is None else np.full(shape, fill, np.float32)

        self.saliency = numbers(queries, keys) if saliency else None
        self.rows = numbers(heads, keys, fill=np.nan) if rows else None  # NaN for heads that a layer lacks
        self.flow = numbers(heads, num_query, num_key, fill=np.nan)
        self.row_total = numbers(heads, num_query, fill=np.nan)
        self.matrix_total = numbers(heads, fill=np.nan)

    def nothing(self, examples: slice, layer: int, heads: int) -> None:
        """Put 0 for a layer that leads nowhere."""
        for of_positions in (self.saliency, self.rows):
            if of_positions is not None:
                of_positions[examples, layer] = 0
        for of_heads in (self.flow, self.row_total, self.matrix_total):
            of_heads[examples, layer, :heads] = 0

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Variable → its numbers."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def of_target(self, target: int | None) -> Results:
        """The results of one target, which share memory with these; None: these."""
        if target is None:
            return self
        found = copy.copy(self)
        vars(found).update({name: value[:, target] for name, value in self.arrays().items()})
        return found


class Part(NamedTuple):
    """Layers whose matrices have the same queries and keys."""

    layers: tuple[Mixer, ...]
    groups: tuple[Tensor, Tensor]
    """Of the queries [B,T] and of the keys [B,S], -1 for none."""
    results: Results
    times: int = 1
    """How many matrices an example has: the pictures of a vision tower."""
    split: Split | None = None
    """How the groups of queries follow from those of the pass, where each target has results of its own."""

    def at(self, examples: slice) -> slice:
        """The place of some examples in the groups and results."""
        return slice(examples.start * self.times, examples.stop * self.times)

    def of(self, examples: slice) -> Part:
        """The part for some of the examples; its results stay whole."""
        at = self.at(examples)
        split = None if self.split is None else self.split.of(examples)
        return self._replace(groups=(self.groups[0][at], self.groups[1][at]), split=split)

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of groups of queries and keys in a pass."""
        num_query, num_key = self.results.groups
        return num_query + (0 if self.split is None else self.split.members.shape[1] - 1), num_key
