"""What is read of each layer: its arrays in host memory, and the taps that fill them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symground import ops
from symground.analysis.tracing import most_heads
from symground.models import Mixer, Tap
from symground.models.hooks import tapped
from symground.ops.attention.mixing import Mixing
from symground.ops.attention.weights.api import attention_read
from symground.ops.attention.weights.record import Asked

#: The results of every query.
_SUMMARY = ("entropy", "weight", "key", "score", "distance")


class Wanted(NamedTuple):
    """What is read of N examples of T positions."""

    examples: int
    length: int
    rows: Tensor | None  # [N,R]
    query_groups: Tensor | None  # [N,T]
    key_groups: Tensor | None  # [N,T]
    query_names: tuple[str, ...]
    key_names: tuple[str, ...]
    received: bool
    summary: bool
    topk: int | None
    block: int
    largest: bool

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each variable, the sizes after example, layer and head."""
        length, found = self.length, dict[str, tuple[int, ...]]()
        if self.rows is not None:
            found["rows"] = self.rows.shape[1], length
        if self.key_names:
            found["mass"] = len(self.query_names), len(self.key_names)
        if self.received:
            found["received"] = len(self.query_names) or 1, length
        if self.summary:
            found |= dict.fromkeys(_SUMMARY, (length,))
        if self.topk is not None:
            found |= dict.fromkeys(("topk_weight", "topk_key"), (length, self.topk))
        if self.block:
            found["pooled"] = (-(-length // self.block),) * 2
        return found

    def dims(self) -> dict[str, tuple[str, ...]]:
        """The dimensions of each variable."""
        row = "row" if self.summary or self.topk is not None else "query"
        of_query = dict.fromkeys(_SUMMARY, ("query",)) | dict.fromkeys(("topk_weight", "topk_key"), ("query", "rank"))
        more = {
            "rows": (row, "key"), "mass": ("query_group", "key_group"), "received": ("query_group", "key"), **of_query,
            "pooled": ("query_block", "key_block"),
        }  # fmt: skip
        if self.received and not self.query_names:
            more["received"] = ("query_group_of_all", "key")
        return {name: ("example", "layer", "head", *of) for name, of in more.items()}

    def of(self, at: slice, device: torch.device) -> Asked:
        rows, query, key = (
            None if x is None else x[at].to(device) for x in (self.rows, self.query_groups, self.key_groups)
        )
        counts = (len(self.query_names), len(self.key_names)) if self.key_names else (1, 0)
        return Asked(rows, query, key, *counts, self.received, self.summary, self.block, self.largest)


def _is_key(name: str) -> bool:
    return name in ("key", "topk_key")


def bytes_of(layers: tuple[Mixer, ...], wanted: Wanted) -> int:
    """The size of the arrays."""
    of_all = wanted.examples * len(layers) * most_heads(layers)
    return sum(of_all * int(np.prod(shape)) * (8 if _is_key(name) else 4) for name, shape in wanted.shapes().items())


def arrays_of(layers: tuple[Mixer, ...], wanted: Wanted) -> dict[str, NDArray[Any]]:
    """Arrays of NaN, and of -1 for keys."""
    sizes = wanted.examples, len(layers), most_heads(layers)
    return {
        name: np.full((*sizes, *shape), -1 if _is_key(name) else np.nan, np.int64 if _is_key(name) else np.float32)
        for name, shape in wanted.shapes().items()
    }


def reading(
    layers: tuple[Mixer, ...], wanted: Wanted, at: slice, arrays: dict[str, NDArray[Any]]
) -> AbstractContextManager[None]:
    """A block in which a pass of the examples ``at`` fills the arrays."""
    taps = {}
    for n, mixer in enumerate(layers):
        of = wanted, at, arrays, n, mixer
        attends = mixer.kind == "attention"
        taps[mixer] = Tap(read=(partial(_read, *of),)) if attends else Tap(read_scan=(partial(_read_scan, *of),))
    return tapped(taps)


def _read_scan(
    wanted: Wanted, at: slice, arrays: dict[str, NDArray[Any]], layer: int, mixer: Mixer, dt: Tensor, A: Tensor,
    B: Tensor, C: Tensor, key_range: Tensor | None,
) -> None:  # fmt: skip
    """What has a meaning for |M| of Mamba-2."""
    asked, scan = wanted.of(at, dt.device), (dt, A, B, C)
    found = {}
    if asked.rows is not None:
        found["rows"] = ops.ssd_rows(*scan, asked.rows, key_range).abs_()
    if asked.query is not None and asked.key is not None:
        found["mass"] = ops.ssd_mass(*scan, asked.query, asked.key, asked.num_query, asked.num_key, key_range)
    if asked.received:
        count = None if asked.query is None else asked.num_query
        found["received"] = ops.ssd_received(*scan, asked.query, count, key_range)
    for name, x in found.items():
        _store(arrays[name], at, layer, mixer, x)


def _store(array: NDArray[Any], at: slice, layer: int, mixer: Mixer, x: Tensor) -> None:
    array[at, layer, : mixer.heads] = x.to(torch.from_numpy(array).dtype).cpu().numpy()


def _read(
    wanted: Wanted, at: slice, arrays: dict[str, NDArray[Any]], layer: int, mixer: Mixer, q: Tensor, k: Tensor,
    lse: Tensor, mixing: Mixing, keys: int,
) -> None:  # fmt: skip
    more = k.shape[2] - keys
    if (len(q), q.shape[2], keys) != (at.stop - at.start, wanted.length, wanted.length):
        raise ValueError(
            f"model: layer {mixer.layer} mixes {len(q)} examples of {q.shape[2]} queries and {keys} keys, not the "
            f"{at.stop - at.start} of {wanted.length} positions that it is given"
        )
    asked = wanted.of(at, q.device)
    if more and asked.key is not None:
        asked = asked._replace(key=torch.nn.functional.pad(asked.key, (0, more), value=-1))
    found = attention_read(q, k, lse, mixing._replace(gate=None), asked)._asdict()
    if wanted.topk is not None:
        given = {n: x for n, x in mixing._asdict().items() if n != "gate"}
        found["topk_weight"], found["topk_key"] = ops.attention_topk(q, k, lse, wanted.topk, **given)
    if more and wanted.summary:  # of a window on both sides, whose queries are aligned to the last key that they see
        taken = 0.0 if mixing.sink is None else (mixing.sink[:, None] - lse).exp()
        found["distance"] -= more * torch.where(found["key"] < 0, 0.0, 1.0 - taken)
    for name, array in arrays.items():
        x = found[name]
        if more and name in ("rows", "received"):
            x = x[..., :keys]
        if name == "pooled":
            x = x[..., : array.shape[-1]]
        _store(array, at, layer, mixer, x)
