"""Attention of models with several kinds of layers: encoder and decoder, cross-attention, vision towers.

Their layers mix other positions than those of one text, so the variables of each kind have names of their own, as those
of a trace have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import ids_of, mask_of
from symground.analysis.reading.layers import (
    Part,
    Wanted,
    arrays_of,
    bytes_of,
    named,
    notes_of,
    read_in_batches,
)
from symground.analysis.reading.requests import Request, check_asked, rows_of
from symground.analysis.reading.spans import spans_of
from symground.analysis.tracing import (
    Sides,
    check_pictures,
    checked_mask,
    count_of,
    group_ids,
    image_group,
    inputs_of,
    last_of,
    learn_layouts,
    most_heads,
    patch_places,
    prefix_of,
    run_on,
    sizes_of,
    warn_without_pictures,
)
from symground.models import Mixer
from symground.models.architectures import grids_of
from symground.models.hooks import is_encoder_decoder, vision_tower
from symground.models.trials import check_deterministic


class _Text(NamedTuple):
    """The text of the queries of self-attention and cross-attention."""

    ids: Tensor  # [N,T]
    valid: Tensor  # [N,T] bool

    @property
    def last(self) -> Tensor:
        return last_of(self.valid)


class KindsReader:
    """Reads the layers of several kinds; what they mix is found out from a pass of the first batch."""

    def __init__(
        self, model: PreTrainedModel, layers: tuple[Mixer, ...], chosen: tuple[Mixer, ...], inputs: dict[str, Any],
        groups: tuple[Any, Any, Any], asked: Request, batch_size: int,
    ) -> None:  # fmt: skip
        """``inputs`` by name; groups of the text and of what it reads, and the mask of answers, or None for each."""
        of_text, of_source, answers = groups
        self.model, self.inputs, self.count, self.batch_size = model, inputs, count_of(inputs), batch_size
        self.part_of = inputs_of(inputs, None, self.count, min(batch_size, self.count))
        text = _text_of(model, inputs)
        check_deterministic(model)
        ids = inputs.get("input_ids")
        if isinstance(ids, Tensor):
            warn_without_pictures(model, ids, inputs)
        learn_layouts(model, layers, self.part_of(slice(0, 1)), self.count)
        self.tower = vision_tower(model) if any(mixer.kind == "vision" for mixer in layers) else None
        masked = inputs.get("attention_mask") is not None
        with grids_of(self.tower) as self.grids:
            self.sizes = sizes_of(model, layers, self.run, min(batch_size, self.count), masked)
        self.text = text if self.sizes.keys() & {"", "cross_"} else None
        if of_text is None and self.text is not None and not is_encoder_decoder(model):
            answer = None if answers is None else mask_of(answers, "assistant_masks", self.text.ids.shape).bool().cpu()
            of_text = spans_of(model, self.text.ids, self.text.valid, answer)
        last = None if self.text is None else self.text.last[:, None]
        self.sides = Sides(self.sizes, self.count, of_text, of_source, last)
        if "vision_" in self.sizes and isinstance(ids, Tensor):
            check_pictures(image_group(model, ids), self.grids, self.sizes["vision_"][0])
        self.heads = most_heads(layers)
        each = {kind: tuple(m for m in chosen if prefix_of(m) == kind) for kind in self.sizes}
        self.parts = {kind: (of_kind, self._wanted(kind, asked)) for kind, of_kind in each.items() if of_kind}
        check_asked([name for _, wanted in self.parts.values() for name in wanted.shapes()])

    def run(self, at: slice) -> Any:
        return run_on(self.model, self.part_of(at))

    @property
    def bytes(self) -> int:
        """The size of the result."""
        return sum(bytes_of(layers, wanted, self.heads) for layers, wanted in self.parts.values())

    def _wanted(self, kind: str, asked: Request) -> Wanted:
        times, (queries, keys) = self.sides.times_of(kind), self.sides.lengths_of(kind)
        count = self.count * times
        of_text = kind in ("", "cross_") and self.text is not None
        valid = self._valid(kind, count, queries)
        # Of the layers that read no text that asks, only all rows have a meaning.
        alone = of_text or (self.text is None and len(self.sizes) == 1)
        rows = None
        if asked.rows is not None and (alone or asked.rows == "all"):
            p = self.text.last if self.text is not None and of_text else None
            rows = rows_of(asked.rows, p, count, queries)
        masks = self.sides.masks_of(kind)
        of_query, of_key = masks if all(masks) else ({}, {})
        of_query = {name: mask & valid for name, mask in of_query.items()}
        of_key = {name: mask & self._valid(kind, count, keys, keys_are=True) for name, mask in of_key.items()}
        return Wanted(
            count, queries, keys, valid, rows, _ids(of_query, count, queries), _ids(of_key, count, keys),
            tuple(of_query), tuple(of_key), asked.received, asked.summary, asked.topk, asked.block, asked.largest,
        )  # fmt: skip

    def _valid(self, kind: str, count: int, length: int, keys_are: bool = False) -> Tensor:
        """[N,T] or [N,S] bool, which queries, or keys, of the layers of a kind are no padding."""
        if self.text is not None and (kind == "" or (kind == "cross_" and not keys_are)):
            return self.text.valid
        mask = self.inputs.get("attention_mask")
        of_source = kind == "encoder_" or (kind == "cross_" and is_encoder_decoder(self.model))
        if of_source and isinstance(mask, Tensor) and mask.shape == (count, length):
            return mask.bool().cpu()
        return torch.ones(count, length, dtype=torch.bool)

    def read(self) -> xr.Dataset:
        """Run the batches, and return what was read of all parts."""
        parts = {
            kind: Part(layers, wanted, arrays_of(layers, wanted, self.heads), self.sides.times_of(kind))
            for kind, (layers, wanted) in self.parts.items()
        }
        read_in_batches(parts.values(), self.count, self.batch_size, self.run)
        variables: dict[str, Any] = {}
        coordinates: dict[str, Any] = {"head": np.arange(self.heads)}
        for kind, part in parts.items():
            of_kind, places = named(kind, part)
            variables |= self.sides.by_image(kind, of_kind)
            of_layers = f"{kind}layer"
            coordinates[f"{kind}part"] = of_layers, ["vision" if kind == "vision_" else "text"] * len(part.layers)
            # Each query of a vision tower is valid, and its matrices are those of an image.
            coordinates |= {n: x for n, x in places.items() if kind != "vision_" or n in (of_layers, f"{kind}kind")}
        if "vision_" in parts:
            times, _, patches = self.sizes["vision_"]
            coordinates |= patch_places(self.tower, self.grids, (self.count, times, patches))
        every = tuple(mixer for part in parts.values() for mixer in part.layers)
        return xr.Dataset(variables, coordinates, attrs=notes_of(self.model, every))


def _ids(masks: Mapping[str, Tensor], examples: int, length: int) -> Tensor | None:
    return group_ids(masks, torch.zeros(examples, length).long()) if masks else None


def _text_of(model: PreTrainedModel, inputs: Mapping[str, Any]) -> _Text | None:
    """The text that the decoder continues, or the only one; None if there is none.

    Raises:
        ValueError: an encoder-decoder without the ids of its decoder, which may make some of its own.
    """
    name = "decoder_input_ids" if is_encoder_decoder(model) else "input_ids"
    if inputs.get(name) is None:
        if is_encoder_decoder(model):
            raise ValueError(f"{name}: expected the ids [B,T] of the text that the decoder continues, got None")
        return None
    ids = ids_of(inputs[name], name, 2, 2**62)
    of_mask = name.replace("input_ids", "attention_mask")
    mask = inputs.get(of_mask)
    valid = torch.ones_like(ids) if mask is None else checked_mask(mask, ids, of_mask)
    return _Text(ids.cpu(), valid.bool().cpu())
