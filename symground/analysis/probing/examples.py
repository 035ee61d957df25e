"""Rows of ids (a context with a noun in it), and examples with their targets and groups of positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from symground.analysis.probing.targets import Targets, targets_at
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
    """N examples: rows padded to one length by repeating their last id.

    A row is a context, followed by the tokens of the target but for its last, which no token predicts.
    """

    input_ids: Tensor
    """[N,T]"""
    prediction: Tensor
    """[N] p, the last context token."""
    targets: Tensor
    """[N] ids of the LAN nouns; of one with several tokens, the first."""
    context: list[int]
    noun: list[str]
    query_masks: dict[str, Tensor]
    """name → [N,T]: "prediction" (p, and the target's tokens that are followed by another) and "env" (the last token of
    the noun, or the last patch that shows it)."""
    key_masks: dict[str, Tensor]
    """name → [N,T]: "env" (the noun and its span), "event", and for images "patches" (the others that show it)."""
    inputs: Callable[[slice], Mapping[str, Tensor]] | None = None
    """Further inputs of the model for a part of the examples, such as the pixels of their images."""
    further: Tensor | None = None
    """[N,R-1] ids of the targets' tokens after the first, -1 where a target has fewer; None: all have one."""

    def __repr__(self) -> str:
        count, length = self.input_ids.shape
        return f"Examples: {count} of {length} tokens, groups {', '.join(self.key_masks) or 'none'}"

    def given(self, part: slice, device: torch.device | None = None) -> dict[str, Tensor]:
        """The further inputs of a part of the examples, on a device."""
        found = {} if self.inputs is None else self.inputs(part)
        return {name: value.to(device) for name, value in found.items()}

    @property
    def wanted(self) -> Targets:
        """The tokens of the targets."""
        first = targets_at(self.prediction, self.targets)
        if self.further is None:
            return first
        ids = torch.cat([first.ids, self.further], 1)
        return Targets(torch.where(ids < 0, -1, first.positions + torch.arange(ids.shape[1])), ids)

    @property
    def lengths(self) -> Tensor:
        """[N] the number of tokens of each row, without padding."""
        return self.wanted.positions.amax(1) + 1

    @property
    def words(self) -> list[Ids]:
        """The targets' ids."""
        return [tuple(i for i in ids if i >= 0) for ids in self.wanted.ids.tolist()]

    def with_words(self, words: Sequence[Ids]) -> Examples:
        """The same contexts with other targets.

        Raises:
            ValueError: further inputs of the model, whose lengths are those of these targets, and others of several
                tokens.
        """
        first = torch.tensor([ids[0] for ids in words])
        most = max(map(len, words))
        if most == 1 and self.further is None:
            return self._replace(targets=first)
        if self.inputs is not None:
            raise ValueError(
                "examples: expected targets of one token, since the model has other inputs beside the text"
            )
        contexts = zip(self.input_ids.tolist(), self.prediction.tolist(), words, strict=True)
        ids = padded([(*row[: p + 1], *word[:-1]) for row, p, word in contexts])
        query, key = (
            {name: _fitted(mask, ids) for name, mask in x.items()} for x in (self.query_masks, self.key_masks)
        )
        found = self._replace(input_ids=ids, targets=first, further=further_of(words), query_masks=query, key_masks=key)
        query["prediction"] = found.wanted.mask(ids.shape[1])
        return found

    def read_by(self, model: PreTrainedModel) -> Examples:
        """The same for a model; if its tokens see later ones, with a mask that hides the padding from them.

        In other models right padding needs no mask, since no valid token comes after it.

        Raises:
            ValueError: targets of several tokens in a model that sees them before it predicts them.
        """
        if not looks_ahead(model):
            return self
        if self.further is not None:
            raise ValueError(
                f"probes: {type(model).__name__} sees later tokens, so it does not predict words of several tokens one "
                "by one; expected words of one token. symground.score takes them"
            )
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
            query, key, inputs, None if self.further is None else self.further[rows],
        )  # fmt: skip


def padded(rows: Sequence[Ids]) -> Tensor:
    """Rows of ids as [N,T]; shorter ones repeat their last id, since transformers warns of padding ids."""
    most = max(map(len, rows))
    return torch.tensor([(*row, *row[-1:] * (most - len(row))) for row in rows])


def further_of(words: Sequence[Ids]) -> Tensor | None:
    """[N,R-1] the ids of words after the first, -1 where a word has fewer; None if all have one."""
    most = max(map(len, words))
    return None if most == 1 else torch.tensor([(*ids[1:], *(-1,) * (most - len(ids))) for ids in words])


def _fitted(mask: Tensor, ids: Tensor) -> Tensor:
    """A mask [N,T] cut or filled with False to the length of ids."""
    length = ids.shape[1]
    return pad(mask[:, :length], (0, max(0, length - mask.shape[1])))
