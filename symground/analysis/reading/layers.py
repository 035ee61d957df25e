"""What is read of each layer: its arrays in host memory, and the taps that fill them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from symground import ops
from symground.analysis.tracing import Variables, coordinates_of, most_heads, names_of
from symground.models import Mixer, Tap
from symground.models.attachment import untraced
from symground.models.hooks import tapped
from symground.ops.attention.mixing import Mixing
from symground.ops.attention.weights.api import attention_read
from symground.ops.attention.weights.record import Asked
from symground.ops.common.flow import members
from symground.running import progress

#: The results of every query.
_SUMMARY = ("entropy", "weight", "weight_key", "score", "distance")
#: What stands in a row of padding, where it is not 0.
_NOTHING = {"weight_key": -1, "topk_key": -1, "score": float("-inf")}
#: What a backward pass gives.
FLOW = ("flow", "row_total")


class Wanted(NamedTuple):
    """What is read of N examples, whose T queries are the last of S positions."""

    examples: int
    queries: int
    keys: int
    valid: Tensor  # [N,T] bool, False at padding
    rows: Tensor | None  # [N,R], indices of the queries
    query_groups: Tensor | None  # [N,T]
    key_groups: Tensor | None  # [N,S]
    query_names: tuple[str, ...]
    key_names: tuple[str, ...]
    received: bool
    summary: bool
    topk: int | None
    block: int
    largest: bool
    flow: bool = False
    cached: bool = False
    """Whether a layer may hold the last of the keys alone."""
    past: int = 0
    """How many positions of the text were read before."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each variable, the sizes after example, layer and head."""
        queries, keys, found = self.queries, self.keys, dict[str, tuple[int, ...]]()
        if self.rows is not None:
            found["rows"] = self.rows.shape[1], keys
        if self.key_names:
            found["mass"] = len(self.query_names), len(self.key_names)
        if self.received:
            found["received"] = len(self.query_names) or 1, keys
        if self.summary:
            found |= dict.fromkeys(_SUMMARY, (queries,))
        if self.topk is not None:
            found |= dict.fromkeys(("topk_weight", "topk_key"), (queries, self.topk))
        if self.block:
            found["pooled"] = -(-queries // self.block), -(-keys // self.block)
        if self.flow:
            found |= {"flow": (len(self.query_names), len(self.key_names)), "row_total": (len(self.query_names),)}
        return found

    def dims(self) -> dict[str, tuple[str, ...]]:
        """The dimensions of each variable."""
        row = "row" if self.summary or self.topk is not None else "query"
        of_query = dict.fromkeys(_SUMMARY, ("query",)) | dict.fromkeys(("topk_weight", "topk_key"), ("query", "rank"))
        more = {
            "rows": (row, "key"), "mass": ("query_group", "key_group"), "received": ("query_group", "key"), **of_query,
            "pooled": ("query_block", "key_block"), "flow": ("query_group", "key_group"), "row_total": ("query_group",),
        }  # fmt: skip
        return {name: ("example", "layer", "head", *of) for name, of in more.items()}

    def of(self, at: slice, device: torch.device) -> Asked:
        rows, query, key = (
            None if x is None else x[at].to(device) for x in (self.rows, self.query_groups, self.key_groups)
        )
        counts = (len(self.query_names), len(self.key_names)) if self.key_names else (1, 0)
        return Asked(rows, query, key, *counts, self.received, self.summary, self.block, self.largest)


def is_key(name: str) -> bool:
    return name in ("weight_key", "topk_key")


def bytes_of(layers: tuple[Mixer, ...], wanted: Wanted, heads: int | None = None) -> int:
    """The size of the arrays; of ``heads`` heads, or as many as the layers have."""
    of_all = wanted.examples * len(layers) * (heads or most_heads(layers))
    return sum(of_all * int(np.prod(shape)) * (8 if is_key(name) else 4) for name, shape in wanted.shapes().items())


def arrays_of(layers: tuple[Mixer, ...], wanted: Wanted, heads: int | None = None) -> dict[str, NDArray[Any]]:
    """Arrays of NaN, and of -1 for keys."""
    sizes = wanted.examples, len(layers), heads or most_heads(layers)
    return {
        name: np.full((*sizes, *shape), -1 if is_key(name) else np.nan, np.int64 if is_key(name) else np.float32)
        for name, shape in wanted.shapes().items()
    }


class Part(NamedTuple):
    """Layers that mix the same positions, what is read of them, and the arrays."""

    layers: tuple[Mixer, ...]
    wanted: Wanted
    arrays: dict[str, NDArray[Any]]
    times: int = 1
    """How many matrices an example has."""


def named(kind: str, part: Part) -> tuple[Variables, dict[str, Any]]:
    """The variables and coordinates of the layers of a kind, by its prefix, as a trace names them."""
    names = names_of(kind) | {name: f"{kind}{name}" for name in ("row", "query_block", "key_block")}

    def renamed(dims: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.get(dim, dim) for dim in dims)

    dims, found, of_layers = part.wanted.dims(), coordinates_of(part.layers), f"{kind}layer"
    variables: Variables = {f"{kind}{name}": (renamed(dims[name]), value) for name, value in part.arrays.items()}
    coordinates: dict[str, Any] = {of_layers: found["layer"], f"{kind}kind": (of_layers, found["kind"][1])}
    for name, value in coordinates_in(part.wanted).items():
        of_dims = (renamed(value[0]), value[1]) if isinstance(value, tuple) else value
        coordinates[names.get(name, f"{kind}{name}")] = of_dims
    return variables, coordinates


def dataset_of(model: PreTrainedModel, parts: Mapping[str, Part], heads: int) -> xr.Dataset:
    """The arrays of parts, by the prefixes of their kinds, with their dimensions and coordinates."""
    variables, coordinates = dict[str, Any](), {"head": np.arange(heads)}
    for kind, part in parts.items():
        of_kind, places = named(kind, part)
        variables, coordinates = {**variables, **of_kind}, {**coordinates, **places}
    every = tuple(mixer for part in parts.values() for mixer in part.layers)
    return xr.Dataset(variables, coordinates, attrs=notes_of(model, every))


def coordinates_in(wanted: Wanted) -> dict[str, Any]:
    """The coordinates of queries and groups."""
    found: dict[str, Any] = {}
    if wanted.rows is not None:
        found["row_position"] = (("example", wanted.dims()["rows"][3]), wanted.rows.numpy() + wanted.past)
    if wanted.summary or wanted.topk is not None:
        found["valid"] = (("example", "query"), wanted.valid.numpy())
    if wanted.query_groups is not None:
        found |= {"query_group": list(wanted.query_names), "key_group": list(wanted.key_names)}
        sizes = members(wanted.query_groups, len(wanted.query_names), torch.float32).sum(-1).long()
        found["group_size"] = (("example", "query_group"), sizes.numpy())
    elif wanted.received:
        found["query_group"] = ["all"]
    return found


def notes_of(model: PreTrainedModel, layers: tuple[Mixer, ...]) -> dict[str, str]:
    """What a Dataset says beside its numbers."""
    scans = [mixer.layer for mixer in layers if mixer.kind == "mamba2"]
    note = f"layers {scans} are of |M| of Mamba-2, whose rows sum to any number; NaN where that has no meaning"
    return {"untraced": ", ".join(untraced(model)), **({"note": note} if scans else {})}


def read_in_batches(parts: Collection[Part], examples: int, batch_size: int, run: Callable[[slice], Any]) -> None:
    """Fill the arrays of the parts; ``run`` runs the model on some of the examples."""
    with torch.inference_mode(), progress("attention", -(-examples // batch_size), quick=True) as bar:
        for start in range(0, examples, batch_size):
            at = slice(start, min(start + batch_size, examples))
            with _reading(parts, at):
                run(at)
            bar.advance()


def _reading(parts: Collection[Part], at: slice) -> AbstractContextManager[None]:
    """A block in which a pass of the examples ``at`` fills the arrays of the parts."""
    taps = {}
    for part in parts:
        here = slice(at.start * part.times, at.stop * part.times)
        for n, mixer in enumerate(part.layers):
            of = part.wanted, here, part.arrays, n, mixer
            scans = mixer.kind == "mamba2"
            taps[mixer] = Tap(read_scan=(partial(read_scan, *of),)) if scans else Tap(read=(partial(read, *of),))
    return tapped(taps)


def read_scan(
    wanted: Wanted, at: slice, arrays: dict[str, NDArray[Any]], layer: int, mixer: Mixer, dt: Tensor, A: Tensor,
    B: Tensor, C: Tensor, key_range: Tensor | None,
) -> None:  # fmt: skip
    """Store what has a meaning for |M| of Mamba-2, of the positions of the pass alone."""
    _check_sizes(wanted, at, mixer, *dt.shape[:2])
    asked, scan, first = wanted.of(at, dt.device), (dt, A, B, C), wanted.keys - dt.shape[1]
    found = {}
    if asked.rows is not None:
        found["rows"] = ops.ssd_rows(*scan, asked.rows, key_range).abs_()
    if asked.query is not None and asked.key is not None:
        groups = asked.query, asked.key[:, first:], asked.num_query, asked.num_key
        past = members(asked.key[:, :first], asked.num_key, torch.float32).amax(-1, keepdim=True) if first else None
        mass = ops.ssd_mass(*scan, *groups, key_range)
        # What a group had before the pass is not known.
        found["mass"] = mass if past is None else mass.masked_fill(past.mT[:, None] > 0, float("nan"))
    if asked.received:
        query, count = asked.query, asked.num_query
        if query is None:  # all of them but padding
            query, count = torch.where(wanted.valid[at].to(dt.device), 0, -1), 1
        found["received"] = ops.ssd_received(*scan, query, count, key_range)
    for name, x in found.items():
        _store(arrays[name], at, layer, mixer, x, 0 if name == "mass" else first)


def read(
    wanted: Wanted, at: slice, arrays: dict[str, NDArray[Any]], layer: int, mixer: Mixer, q: Tensor, k: Tensor,
    lse: Tensor, mixing: Mixing, keys: int,
) -> None:  # fmt: skip
    """Store what is asked of one layer's attention, whose own keys are the last ``keys`` positions."""
    more, first = k.shape[2] - keys, wanted.keys - keys
    _check_sizes(wanted, at, mixer, len(q), q.shape[2])
    if first < 0 or (first and not wanted.cached):
        raise ValueError(
            f"model: layer {mixer.layer} mixes {keys} keys, not the {wanted.keys} positions that it is given"
        )
    asked = wanted.of(at, q.device)
    if asked.key is not None:
        asked = asked._replace(key=pad(asked.key[:, first:], (0, more), value=-1))
    given_k, given_mixing, lead = k, mixing, 0
    if wanted.block:  # blocks begin at the same positions in every layer, also where it has kept the last keys alone
        lead = first % wanted.block
        k, mixing, asked = _led(k, mixing, asked, lead)
        first -= lead
    padding = ~wanted.valid[at]
    if bool(padding.any()):  # with a log-sum-exp of inf the weights of a row are 0, so that it is in no sum
        lse = lse.masked_fill(padding.to(q.device)[:, None], float("inf"))
    found = attention_read(q, k, lse, mixing._replace(gate=None), asked)._asdict()
    found["weight_key"] = found.pop("key")  # a variable of a dimension's name is no variable to netCDF
    if wanted.topk is not None:
        given = {n: x for n, x in given_mixing._asdict().items() if n != "gate"}
        found["topk_weight"], of_key = ops.attention_topk(q, given_k, lse, min(wanted.topk, keys), **given)
        found["topk_key"] = torch.where(of_key < 0, of_key, of_key + lead)
    if more and wanted.summary:  # of a window on both sides, whose queries are aligned to the last key that they see
        taken = 0.0 if mixing.sink is None else (mixing.sink[:, None] - lse).exp()
        found["distance"] -= more * torch.where((found["weight_key"] < 0) | lse.isposinf(), 0.0, 1.0 - taken)
    if mixer.kind == "cross" and wanted.summary:  # its queries and keys are not positions of one text
        found["distance"] = torch.full_like(found["distance"], float("nan"))
    for name, array in arrays.items():
        if name in FLOW:
            continue
        x, offset = found[name], 0
        if name in ("rows", "received"):  # a key that is no longer there is hidden by the window
            x, offset = x[..., lead : lead + keys], first + lead
        elif name == "pooled":
            offset = first // wanted.block
            x = x[..., : array.shape[-1] - offset]
        elif is_key(name):
            x = torch.where(x < 0, x, x + first)
        if name in _NOTHING:
            x = x.masked_fill(padding.to(q.device).view(len(q), 1, -1, *(1,) * (x.ndim - 3)), _NOTHING[name])
        if not is_key(name):
            array[at, layer, : mixer.heads] = 0
        _store(array, at, layer, mixer, x, offset)


def _led(k: Tensor, mixing: Mixing, asked: Asked, lead: int) -> tuple[Tensor, Mixing, Asked]:
    """Keys with ``lead`` more before the others, which no query sees, and the records of their positions."""
    if not lead:
        return k, mixing, asked
    key_range = mixing.key_range
    if key_range is None:
        key_range = torch.tensor([[0, k.shape[2]]], device=k.device).expand(len(k), -1)
    ids = {
        name: None if x is None else pad(x, (lead, 0), value=-1)
        for name, x in (("segments", mixing.segments), ("blocks", mixing.blocks))
    }
    key = None if asked.key is None else pad(asked.key, (lead, 0), value=-1)
    led = mixing._replace(key_range=key_range + lead, segments=ids["segments"], blocks=ids["blocks"])
    return pad(k, (0, 0, lead, 0)), led, asked._replace(key=key)


def _check_sizes(wanted: Wanted, at: slice, mixer: Mixer, examples: int, queries: int) -> None:
    if (examples, queries) != (at.stop - at.start, wanted.queries):
        raise ValueError(
            f"model: layer {mixer.layer} mixes {examples} examples of {queries} queries, not the "
            f"{at.stop - at.start} of {wanted.queries} positions that it is given"
        )


def _store(array: NDArray[Any], at: slice, layer: int, mixer: Mixer, x: Tensor, offset: int = 0) -> None:
    """Put x [E,H,...] into a layer's array, the last dimension from ``offset`` on."""
    to = array[at, layer, : mixer.heads, ..., offset : offset + x.shape[-1]]
    to[...] = x.to(torch.from_numpy(array).dtype).cpu().numpy()
