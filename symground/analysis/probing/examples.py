"""Rows of ids (a context with a noun in it), and examples with their targets and groups of positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.models.trials import looks_ahead

Ids = tuple[int, ...]

#: The key group of the image in questions about images, which replaces "env".
IMAGE = "image"
#: If an image shows the noun, several patches may show it: "env" is the last of them, this group the others. Flow from
#: this group into the prediction counts as flow from the noun, and flow from it into "env" as flow from the rest.
PATCHES = "patches"


class Row(NamedTuple):
    """One context with one noun in its slot."""

    before: Ids
    noun: Ids
    """The noun, or an image that shows it."""
    after: Ids
    patches: tuple[int, ...] = ()
    """The indices of the image's ids that show the noun."""
    outside: int = 0
    """Number of ids before the first utterance."""

    @property
    def ids(self) -> Ids:
        return self.before + self.noun + self.after


class Examples(NamedTuple):
    """N examples: rows padded to one length by repeating their last id."""

    input_ids: Tensor
    """[N,T]"""
    prediction: Tensor
    """[N] p, the last context token."""
    targets: Tensor
    """[N] ids of the LAN nouns."""
    context: list[int]
    noun: list[str]
    query_masks: dict[str, Tensor]
    """name → [N,T]: "prediction" and "env" (the last token of the noun, or the last patch that shows it)."""
    key_masks: dict[str, Tensor]
    """name → [N,T]: "env" (the noun and its span), "event", and for images "patches" (the others that show it)."""
    inputs: Callable[[slice], Mapping[str, Tensor]] | None = None
    """Further inputs of the model for a part of the examples, such as the pixels of their images."""

    def __repr__(self) -> str:
        count, length = self.input_ids.shape
        return f"Examples: {count} of {length} tokens, groups {', '.join(self.key_masks) or 'none'}"

    def given(self, part: slice, device: torch.device | None = None) -> dict[str, Tensor]:
        """The further inputs of a part of the examples, on a device."""
        found = {} if self.inputs is None else self.inputs(part)
        return {name: value.to(device) for name, value in found.items()}

    def read_by(self, model: PreTrainedModel) -> Examples:
        """The same for a model; if its tokens see later ones, with a mask that hides the padding from them.

        In other models right padding needs no mask, since no valid token comes after it.
        """
        if not looks_ahead(model):
            return self
        mask = (torch.arange(self.input_ids.shape[1]) <= self.prediction[:, None]).long()
        return self._replace(inputs=lambda part: {**self.given(part), "attention_mask": mask[part]})

    def part(self, at: slice) -> Examples:
        """A slice of the examples."""
        first, last, _ = at.indices(len(self.input_ids))
        whole = self.inputs
        inputs = None if whole is None else lambda p: whole(slice(first + p.start, first + p.stop))
        rows = slice(first, last)
        query, key = ({name: mask[rows] for name, mask in x.items()} for x in (self.query_masks, self.key_masks))
        return Examples(
            self.input_ids[rows], self.prediction[rows], self.targets[rows], self.context[rows], self.noun[rows],
            query, key, inputs,
        )  # fmt: skip
