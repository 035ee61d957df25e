"""Attention of models whose layers all mix the positions of one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.reading.given import Given
from symground.analysis.reading.layers import (
    Part,
    Wanted,
    arrays_of,
    bytes_of,
    dataset_of,
    read_in_batches,
)
from symground.analysis.reading.requests import Request, check_asked, rows_of
from symground.analysis.tracing import group_ids, most_heads
from symground.errors import described, integer, is_integer, is_list
from symground.models import Mixer, mixers
from symground.models.hooks import body, device_of
from symground.models.trials import check_deterministic
from symground.running import LARGE_PASS, return_freed_memory


class TextReader:
    """Reads N texts in batches."""

    def __init__(
        self, model: PreTrainedModel, layers: tuple[Mixer, ...], given: Given, asked: Request, batch_size: int
    ) -> None:
        self._model, self._layers, self._given, self._batch_size = model, layers, given, batch_size
        self._wanted = _wanted(given, asked)
        check_asked(self._wanted.shapes())

    @property
    def bytes(self) -> int:
        """The size of the result."""
        return bytes_of(self._layers, self._wanted)

    def read(self) -> xr.Dataset:
        """Run the batches without the vocabulary head, and return what was read."""
        model, given, layers = self._model, self._given, self._layers
        check_deterministic(model)
        part = Part(layers, self._wanted, arrays_of(layers, self._wanted))
        device, count = device_of(model), given.examples
        width = getattr(model.config.get_text_config(), "hidden_size", 0)
        large = len(layers) * min(self._batch_size, count) * given.length * width >= LARGE_PASS

        def run(at: slice) -> None:
            here = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in given.inputs(at).items()}
            body(model)(**here, use_cache=False)

        with return_freed_memory(device.type == "cpu" and large):
            read_in_batches((part,), count, self._batch_size, run)
        found = dataset_of(model, {"": part}, most_heads(layers))
        if given.ids is None or "key" not in found.dims:
            return found
        ids = torch.where(given.valid, given.ids.cpu(), -1).numpy()
        return found.assign_coords(token=(("example", "key"), ids))


def readable(
    model: PreTrainedModel, chosen: Sequence[int] | None = None, of_probes: bool = False, crosses: bool = False
) -> tuple[Mixer, ...]:  # fmt: skip
    """The layers to read: of the numbers ``chosen``; of probes, which are words alone, those that mix the text.

    With ``crosses`` those of a decoder and its cross-attention.
    """
    every = mixers(model)
    kinds = ("attention", "mamba2", *(("self", "cross") if crosses else ()))
    layers = tuple(mixer for mixer in every if mixer.kind in kinds)
    others = sorted({mixer.kind for mixer in every if mixer not in layers})
    if (others and not (of_probes or crosses)) or not layers:
        raise ValueError(
            "model: expected one whose layers mix the positions of a text by attention or Mamba-2, got "
            + type(model).__name__
            + (f" with layers of kind {', '.join(others)}" if others else " without such layers")
        )
    return chosen_of(layers, chosen)


def chosen_of(layers: tuple[Mixer, ...], chosen: Sequence[int] | None) -> tuple[Mixer, ...]:
    """The layers of these numbers; None are all.

    Raises:
        ValueError: a number that no layer has.
    """
    if chosen is None:
        return layers
    known = {mixer.layer: mixer for mixer in layers}
    each: list[Any] = list(chosen) if is_list(chosen) else [chosen]
    wrong = [x for x in each if not is_integer(x) or x not in known]
    if wrong or not is_list(chosen) or not each:
        got = described(wrong[0]) if wrong else repr(chosen)
        raise ValueError(f"layers: expected a list of numbers of layers among {sorted(known)}, got {got}")
    return tuple(known[n] for n in sorted({int(x) for x in each}))


def _wanted(given: Given, asked: Request) -> Wanted:
    length, like = given.length, given.valid.long()
    if asked.topk is not None:
        integer("topk", asked.topk, 1, length)
    queries, keys = (group_ids(of, like) if of else None for of in (given.queries, given.keys))
    return Wanted(
        given.examples, length, length, given.valid, rows_of(asked.rows, given.prediction, given.examples, length),
        queries, keys, tuple(given.queries), tuple(given.keys), asked.received, asked.summary, asked.topk, asked.block,
        asked.largest,
    )  # fmt: skip
