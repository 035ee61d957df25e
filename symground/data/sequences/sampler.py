"""The rows on which a step trains: they depend only on the seed and the step, so resuming needs no state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from symground.data.sequences.corpus import Corpus

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class RowSampler:
    """Draws rows that begin where an utterance or a scene begins, and end at the row's length or the document's end."""

    tokens: NDArray[np.int32]
    documents: NDArray[np.int64]
    starts: NDArray[np.int64]
    batch_size: int
    length: int
    seed: int
    padding: int
    prefix: int = 0
    """Tokens with which every document and every row begins: an image. They are no targets."""

    @staticmethod
    def of(corpus: Corpus, batch_size: int, length: int, seed: int) -> RowSampler:
        """A sampler of a corpus, with its tokenizer's padding."""
        padding = corpus.tokenizer.pad_token_id
        return RowSampler(
            corpus.tokens, corpus.documents, corpus.starts, batch_size, length, seed, padding, corpus.prefix
        )  # fmt: skip

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(input_ids, targets), both [batch_size, length] int64, of this step.

        Targets are the next tokens; -100 after the document's end, where the inputs are padding.
        """
        import torch  # here, so that processes that only read text do not load it

        rng = np.random.default_rng((self.seed, step))
        starts = self.starts[rng.integers(len(self.starts), size=self.batch_size)]
        document = np.searchsorted(self.documents, starts, side="right")
        begins, ends = self.documents[document - 1], self.documents[document]
        inputs = np.full((self.batch_size, self.length), self.padding, dtype=np.int64)
        targets = np.full((self.batch_size, self.length), IGNORED, dtype=np.int64)
        room = self.length - self.prefix
        for row, (begin, start, end) in enumerate(zip(begins, starts, ends, strict=True)):
            text = self.tokens[start : min(start + room + 1, end)]
            inputs[row, : self.prefix] = self.tokens[begin : begin + self.prefix]
            inputs[row, self.prefix : self.prefix + min(len(text), room)] = text[:room]
            targets[row, self.prefix : self.prefix + len(text) - 1] = text[1:]
            if self.prefix:  # the first word is predicted at the last patch
                targets[row, self.prefix - 1] = text[0]
        return torch.from_numpy(inputs), torch.from_numpy(targets)
