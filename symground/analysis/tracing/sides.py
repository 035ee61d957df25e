"""The positions that the layers of a model mix: the text's, a source's, the patches of pictures; and their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symground.analysis.tracing.collected import Part, Results, coordinates_of, dims_of
from symground.analysis.tracing.split import Split
from symground.analysis.tracing.trace_input import check_unreserved, group_ids, masks_of, with_prediction
from symground.models import Mixer

#: Kind of layer → the prefix of its variables.
PREFIXES = {"encoder": "encoder_", "cross": "cross_", "vision": "vision_"}
#: Prefix → of which side the queries and the keys are.
_SIDES = {"": ("", ""), "encoder_": ("source", "source"), "cross_": ("", "source"), "vision_": ("vision", "vision")}
#: Side of the positions that a layer mixes → the dimensions of its queries, keys and their groups.
_DIMENSIONS = {
    "": {name: name for name in ("query", "key", "query_group", "key_group")},
    "source": {
        "query": "source_query", "key": "source", "query_group": "source_query_group", "key_group": "source_group",
    },
    "vision": {
        "query": "patch_query", "key": "patch", "query_group": "patch_query_group", "key_group": "patch_group",
    },
}  # fmt: skip


#: Name → dimensions and numbers.
Variables = dict[str, tuple[tuple[str, ...], NDArray[Any]]]


def prefix_of(mixer: Mixer) -> str:
    return PREFIXES.get(mixer.kind, "")


def names_of(kind: str) -> dict[str, str]:
    """The names of the dimensions of the layers of a kind, by its prefix."""
    of_query, of_key = _SIDES[kind]
    names = {name: _DIMENSIONS[of_query][name] for name in ("query", "query_group")}
    return names | {name: _DIMENSIONS[of_key][name] for name in ("key", "key_group")} | {"layer": f"{kind}layer"}


class Sides:
    """The groups of the positions that a decoder (or the only stack of layers) and a source have."""

    def __init__(
        self, sizes: Mapping[str, tuple[int, int, int]], count: int, groups: Mapping[str, Any] | None,
        source_groups: Mapping[str, Any] | None, positions: Tensor | None, per_token: bool = False,
    ) -> None:  # fmt: skip
        """``positions`` [N,R] are those of predictions; with ``per_token``, each has results of its own."""
        if source_groups is not None and not sizes.keys() & {"encoder_", "cross_"}:
            raise ValueError("source_groups: expected None, since no layer reads other positions than the text's")
        text = next((queries for kind, (_, queries, _) in sizes.items() if kind in ("", "cross_")), 0)
        source = next((keys for kind, (_, _, keys) in sizes.items() if kind in ("encoder_", "cross_")), 0)
        self.images, patches, _ = sizes.get("vision_", (1, 0, 0))
        self.keys = {
            "": _masks(groups, count, text, "groups"), "source": _masks(source_groups, count, source), "vision": {},
        }  # fmt: skip
        self.queries = dict(self.keys)
        self.lengths = {"": text, "source": source, "vision": patches}
        self.positions = None if positions is None else positions.cpu()
        if self.positions is not None:
            check_unreserved(self.keys[""])
            self.queries[""] = with_prediction(self.keys[""], self.positions, text)
        self.count, self.per_token = count, per_token

    def lengths_of(self, kind: str) -> tuple[int, int]:
        """The numbers of queries and keys of the layers of a kind."""
        of_query, of_key = _SIDES[kind]
        return self.lengths[of_query], self.lengths[of_key]

    def masks_of(self, kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The masks of the groups of queries and of keys."""
        of_query, of_key = _SIDES[kind]
        return self.queries[of_query], self.keys[of_key]

    def times_of(self, kind: str) -> int:
        """How many matrices an example has."""
        return self.images if kind == "vision_" else 1

    def by_image(self, kind: str, variables: Variables) -> Variables:
        """Variables of a kind, those of a vision tower by example and image."""
        if kind != "vision_":
            return variables
        return {
            name: (("example", "image", *of[1:]), value.reshape(self.count, self.images, *value.shape[1:]))
            for name, (of, value) in variables.items()
        }

    def part(self, kind: str, layers: tuple[Mixer, ...], heads: int, saliency: bool, rows: bool) -> Part:
        (queries, keys), lengths, times = self.masks_of(kind), self.lengths_of(kind), self.times_of(kind)
        count, counts = self.count * times, (len(queries), len(keys))
        none = tuple(torch.full((count, length), -1) for length in lengths)
        of_groups = group_ids(queries, none[0]), group_ids(keys, none[1])
        of_text, split, targets = kind in ("", "cross_"), None, None
        rows = rows and self.positions is not None and of_text
        if self.per_token and self.positions is not None:
            targets = self.positions.shape[1]
            if of_text:
                names = self.keys[""]
                split = Split.at(self.positions, group_ids(names, none[0]), list(queries), list(names))
                of_groups = split.groups(of_groups[0], self.positions), of_groups[1]
        results = Results(len(layers), heads, count, lengths, counts, saliency, rows, targets)
        return Part(layers, of_groups, results, times, split)

    def named(self, kind: str, part: Part) -> tuple[dict[str, Any], dict[str, Any]]:
        """The variables and coordinates of a part, by their names in the Dataset."""
        names, (queries, keys) = names_of(kind), self.masks_of(kind)
        variables: Variables = {
            f"{kind}{name}": (tuple(names.get(of, of) for of in dims_of(name, self.per_token)), value)
            for name, value in part.results.arrays().items()
        }
        variables = self.by_image(kind, variables)
        if kind != "vision_":
            name = "source_groups" if _SIDES[kind][1] else "group"
            variables[name] = (("example", names["key"]), part.groups[1].numpy())
        found = coordinates_of(part.layers)
        coordinates = {
            f"{kind}layer": found["layer"], f"{kind}kind": (f"{kind}layer", found["kind"][1]),
            f"{kind}part": (f"{kind}layer", ["vision" if kind == "vision_" else "text"] * len(part.layers)),
            "head": np.arange(part.results.matrix_total.shape[-1]),
            names["query_group"]: list(queries), names["key_group"]: list(keys),
        }  # fmt: skip
        return variables, coordinates


def _masks(groups: Mapping[str, Any] | None, count: int, length: int, name: str = "source_groups") -> dict[str, Tensor]:
    return masks_of(groups or {}, torch.full((count, length), -1), name)
