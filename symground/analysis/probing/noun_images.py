"""Which images probe which noun."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from symground.analysis.probing.contexts import Context
from symground.analysis.probing.encoding import Row
from symground.data.images import Shown, patch_ids
from symground.data.words import IMAGE

_Rows = tuple[tuple[Row, ...], ...]


@dataclass(frozen=True)
class ProbeImages:
    """Images of nouns, of an image set."""

    patches: int
    """Of each image."""
    of: Mapping[str, Sequence[Shown]]
    """noun → images that show it."""
    shown: Mapping[str, Collection[int]] = field(default_factory=dict)
    """noun → all images that are known to show it, those of other nouns among them."""
    empty: int | None = None
    """An image that shows none of the nouns, where there is one."""

    def chosen(self, noun: str, context: int) -> Shown:
        """The image of a noun in the context of this number."""
        of_noun = self.of[noun]
        return of_noun[context % len(of_noun)]

    def put_into(self, rows: _Rows, contexts: Sequence[Context], nouns: Sequence[str], vocabulary: int) -> _Rows:
        """The rows with the image of their noun where their context shows one, the empty image before all others.

        Raises:
            ValueError: a noun without images, or a patch that its image does not have.
        """
        self._check(contexts, nouns)

        def ids(image: int) -> tuple[int, ...]:
            return tuple(patch_ids(image, self.patches, vocabulary).tolist())

        first = () if self.empty is None else ids(self.empty)
        found = []
        for number, (context, of_context) in enumerate(zip(contexts, rows, strict=True)):
            filled = []
            for noun, row in zip(nouns, of_context, strict=True):
                if context.cue == IMAGE:
                    shown = self.chosen(noun, number)
                    row = row._replace(noun=ids(shown.image), patches=shown.patches or tuple(range(self.patches)))
                else:
                    row = row._replace(before=first + row.before, outside=len(first))
                filled.append(row)
            found.append(tuple(filled))
        return tuple(found)

    def also_shown(self, nouns: Sequence[str], contexts: int) -> Tensor:
        """[V,V] bool: whether an image of noun u, in one of so many contexts, is known to show the other noun v."""
        known = [set(self.shown.get(noun, ())) for noun in nouns]
        used = [{self.chosen(noun, c).image for c in range(contexts)} for noun in nouns]
        return torch.tensor(
            [[u != v and bool(used[u] & known[v]) for v in range(len(nouns))] for u in range(len(nouns))]
        )

    def _check(self, contexts: Sequence[Context], nouns: Sequence[str]) -> None:
        if not any(context.cue == IMAGE for context in contexts):
            return
        without = [noun for noun in nouns if not self.of.get(noun)]
        if without:
            raise ValueError(f"images: there is none of {', '.join(without)}")
        for noun in nouns:
            beyond = [p for shown in self.of[noun] for p in shown.patches if not 0 <= p < self.patches]
            if beyond:
                raise ValueError(f"images: expected patches 0 to {self.patches - 1} of {noun!r}, got {beyond[0]}")
