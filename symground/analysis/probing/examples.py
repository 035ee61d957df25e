"""Rows of ids: a context with a noun in it, and examples with what is predicted after each and their groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Ids = tuple[int, ...]

#: The ground of a question about an image, in place of "env" as a key group.
IMAGE = "image"
#: A noun that an image shows stands in several places: "env" is the last of them, this group the others. Flow from them
#: is flow from the noun into the prediction, and flow from the rest of the image into its last patch.
PATCHES = "patches"


class Row(NamedTuple):
    """One context with one noun in its slot."""

    before: Ids
    noun: Ids
    """The noun, or an image that shows it."""
    after: Ids
    patches: tuple[int, ...] = ()
    """Of an image, which of its ids show the noun."""
    outside: int = 0
    """How many ids stand before the first utterance."""

    @property
    def ids(self) -> Ids:
        return self.before + self.noun + self.after


class Examples(NamedTuple):
    """Rows ready for a model, of one length: each row's last id is repeated after it. N examples."""

    input_ids: Tensor
    """[N,T]"""
    prediction: Tensor
    """[N] p, the last context token."""
    targets: Tensor
    """[N] ids of the LAN nouns."""
    context: list[int]
    noun: list[str]
    query_masks: dict[str, Tensor]
    """name → [N,T]: "prediction" and "env" (the last token of the noun itself, or the last patch that shows it)."""
    key_masks: dict[str, Tensor]
    """name → [N,T]: "env" (the noun and its span), "event", and "patches" (the others that show it) of images."""
    inputs: Callable[[slice], Mapping[str, Tensor]] | None = None
    """What else the model is given, for a part of the examples: the pixels of their images, say."""

    def __repr__(self) -> str:
        count, length = self.input_ids.shape
        return f"Examples: {count} of {length} tokens, groups {', '.join(self.key_masks) or 'none'}"

    def given(self, part: slice, device: torch.device | None = None) -> dict[str, Tensor]:
        """The further inputs of a part of the examples, on a device."""
        found = {} if self.inputs is None else self.inputs(part)
        return {name: value.to(device) for name, value in found.items()}

    def part(self, at: slice) -> Examples:
        """Some of the examples, in their order."""
        first, last, _ = at.indices(len(self.input_ids))
        whole = self.inputs
        inputs = None if whole is None else lambda p: whole(slice(first + p.start, first + p.stop))
        rows = slice(first, last)
        query, key = ({name: mask[rows] for name, mask in x.items()} for x in (self.query_masks, self.key_masks))
        return Examples(
            self.input_ids[rows], self.prediction[rows], self.targets[rows], self.context[rows], self.noun[rows],
            query, key, inputs,
        )  # fmt: skip
