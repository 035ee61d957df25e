"""The groups of the positions of each pass: masks of the caller's, a function of its inputs, or the parts of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from symground.analysis.reading.observing.passing import named_masks, positions_in, words_of
from symground.analysis.reading.spans import spans_of
from symground.errors import described
from symground.models.hooks import cache_of

#: Names → masks [B,P] of positions, or a function of a pass's inputs (by their names) that returns them.
Groups = Mapping[str, Tensor] | Callable[[Mapping[str, Any]], Mapping[str, Tensor]]


class _Groups(Protocol):
    def follow(self, text: Mapping[str, Any], inputs: Mapping[str, Any], past: int) -> None:
        """A pass begins, with the inputs of its text and all of its inputs, after ``past`` positions."""

    def of(self, valid: Tensor) -> dict[str, Tensor]:
        """Masks [B,S] of the positions up to those of the pass, which are words where ``valid`` [B,T] is True."""


def reads_images(model: PreTrainedModel) -> bool:
    """Whether the model's texts may have parts by themselves."""
    return getattr(model.config, "image_token_id", None) is not None


def groups_of(model: PreTrainedModel, groups: Groups | None) -> _Groups:
    if groups is None:
        return _Parts(model)
    return _Asked(groups) if callable(groups) else _Given(groups)


class _Given:
    """Masks of the first positions, whatever the pass."""

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self._masks = dict(masks)

    def follow(self, text: Mapping[str, Any], inputs: Mapping[str, Any], past: int) -> None:
        pass

    def of(self, valid: Tensor) -> dict[str, Tensor]:
        return self._masks


class _Asked:
    """What a function of the inputs says of the positions of each pass; those in a cache keep what was said of them."""

    def __init__(self, function: Callable[[Mapping[str, Any]], Mapping[str, Tensor]]) -> None:
        self._function = function
        self._names: tuple[str, ...] | None = None
        self._masks: dict[str, Tensor] = {}
        self._inputs: Mapping[str, Any] = {}
        self._past = 0

    def follow(self, text: Mapping[str, Any], inputs: Mapping[str, Any], past: int) -> None:
        self._inputs, self._past = inputs, past
        if cache_of(inputs) is not None:  # later passes need what is said of this one, even if it is not read
            self._ask(positions_in(text) or 0)

    def of(self, valid: Tensor) -> dict[str, Tensor]:
        if self._inputs:
            self._ask(valid.shape[1])
        return self._masks

    def _ask(self, queries: int) -> None:
        """Find out the groups of the pass, of so many positions."""
        given, self._inputs = self._function(self._inputs), {}
        if not isinstance(given, Mapping):
            raise ValueError(f"groups: expected a function that returns a mapping from names, got {described(given)}")
        masks = named_masks(given)
        if self._names not in (None, tuple(masks)):
            raise ValueError(f"groups: expected the names {list(self._names or ())} in every pass, got {list(masks)}")
        self._names = tuple(masks)
        for name, mask in masks.items():
            if mask.shape[1] != queries:
                raise ValueError(
                    f"groups[{name!r}]: expected a mask [B,T] of the {queries} positions of the pass, got shape "
                    f"{list(mask.shape)}"
                )
        self._masks = {name: self._after(name, mask) for name, mask in masks.items()}

    def _after(self, name: str, mask: Tensor) -> Tensor:
        """The mask after what is known of the positions in the cache."""
        before = self._masks.get(name)
        if not self._past or before is None or len(before) != len(mask):
            return pad(mask, (self._past, 0))
        before = before[:, : self._past]
        return torch.cat([pad(before, (0, self._past - before.shape[1])), mask], 1)


class _Parts:
    """The parts of a text with images: what follows the first pass of a text is the answer."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._reads_images = model, reads_images(model)
        self._ids: Tensor | None = None
        self._parts: dict[str, Tensor] = {}
        self._total = 0

    def follow(self, text: Mapping[str, Any], inputs: Mapping[str, Any], past: int) -> None:
        if not self._reads_images:
            return
        ids, before = text.get("input_ids"), self._ids
        self._total = past + (positions_in(text) or 0)
        if past:
            return
        if not isinstance(ids, Tensor):  # embeddings do not show where images are
            self._ids, self._parts = None, {}
            return
        if before is not None and len(ids) == len(before) and torch.equal(ids[:, : before.shape[1]], before):
            return  # a text that is read again with what was generated, since there is no cache
        self._ids, self._parts = ids, {}
        self._parts = spans_of(self._model, ids, words_of(text, 0, *ids.shape))

    def of(self, valid: Tensor) -> dict[str, Tensor]:
        if not self._parts:
            return {}
        if valid.shape[1] > 1 and self._total > valid.shape[1]:
            raise ValueError(
                f"groups: expected masks, since this pass goes on by {valid.shape[1]} positions after "
                f"{self._total - valid.shape[1]}, and whether they are of the prompt or the answer is not known"
            )
        more = self._total - self._parts["answer"].shape[1]
        return {name: pad(mask, (0, max(0, more)), value=name == "answer") for name, mask in self._parts.items()}
