"""Scoring all probes with a model: shared prefixes run once, in batches that fit in memory.

Contexts with the same prefix are grouped. The forward pass over the prefix, up to the ENV noun, runs once, and every
row continues from its cache. The rows of a batch have one length, so nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.probing.sentence_probes import Probes
from symground.models.passes import Reader, State

#: Bytes for caches and activations, from which on larger batches are not faster.
MEMORY = {"cpu": 2**26, "cuda": 2**31}
_Table = NDArray[np.float32]


def scan(
    model: PreTrainedModel, probes: Probes, memory: int | None = None, batch_size: int | None = None
) -> Iterator[tuple[int, _Table]]:
    """(context, surprisals [ENV nouns, targets] in nats) as contexts are done; NaN for pairs that are not scored."""
    reader = Reader(model)
    memory = memory or MEMORY.get(reader.device.type, MEMORY["cpu"])
    fitting = _fitting(model, reader.width, memory) if batch_size is None else lambda length, kept=1: batch_size
    for contexts in _beginning_alike(probes, fitting):
        begun = _begin(reader, probes, contexts)
        step = max(1, fitting(_length(probes, contexts[0])) // len(probes.nouns))
        for start in range(0, len(contexts), step):
            yield from _Group(reader, probes, contexts[start : start + step], begun, fitting).scored()


def of_rest(reader: Reader, state: State, rows: Tensor, words: Tensor) -> Tensor:
    """[M] surprisal of the tokens after the first of words [M,tokens], each of which follows a row of the state."""
    seen, _ = reader.read(words[:, :-1], state.select(rows), keep=words.shape[1] - 1)
    return reader.surprisal(seen.flatten(0, 1), words[:, 1:].reshape(-1, 1)).view(len(words), -1).sum(1)


def _length(probes: Probes, context: int) -> int:
    return len(probes.rows[context][0].ids)


class _Fitting(Protocol):
    """The number of rows of a length that fit in memory if ``kept`` positions of each are kept for scoring."""

    def __call__(self, length: int, kept: int = 1) -> int: ...


def _fitting(model: PreTrainedModel, width: int, memory: int) -> _Fitting:
    """An estimate from a model's caches and activations, and from ``width`` numbers at each scored position."""
    config = model.config.get_text_config()
    layers, size = getattr(config, "num_hidden_layers", 12), getattr(config, "hidden_size", 1024)
    # A key and a value in each layer, and a layer's activations: one of four times the width and six of the width.
    each = (2 * layers + 10) * size * next(model.parameters()).element_size()
    return lambda length, kept=1: max(1, memory // (length * each + kept * width * 8))


def _beginning_alike(probes: Probes, fitting: _Fitting) -> Iterator[list[int]]:
    """Contexts whose prefixes form one batch; contexts with the same prefix are never separated."""
    beginnings = [of_context[0].before for of_context in probes.rows]
    found: list[int] = []
    for c in sorted(range(len(beginnings)), key=lambda c: (len(beginnings[c]), beginnings[c], _length(probes, c))):
        last = beginnings[found[-1]] if found else beginnings[c]
        full = len(found) * len(probes.nouns) >= fitting(_length(probes, c))
        if found and beginnings[c] != last and (full or len(beginnings[c]) != len(last)):
            yield found
            found = []
        found.append(c)
    yield found


_Begun = tuple[State | None, dict[int, int]]


def _begin(reader: Reader, probes: Probes, contexts: list[int]) -> _Begun:
    """The state after each distinct prefix, and the index of each context's prefix."""
    of = {c: probes.rows[c][0].before for c in contexts}
    distinct = list(dict.fromkeys(of.values()))
    state = None
    if distinct[0]:
        with torch.inference_mode():
            _, state = reader.read(torch.tensor(distinct))
    return state, {c: distinct.index(of[c]) for c in contexts}


class _Group:
    """Some contexts whose prefixes were read together, with every noun."""

    def __init__(self, reader: Reader, probes: Probes, contexts: list[int], begun: _Begun, fitting: _Fitting) -> None:
        self._reader, self._probes, self._contexts = reader, probes, contexts
        (self._state, self._begun), self._fitting = begun, fitting
        first, self._column = np.unique([ids[0] for ids in probes.targets], return_inverse=True)
        self._first = torch.from_numpy(first)
        self._tokens = np.array([len(ids) for ids in probes.targets])

    def scored(self) -> Iterator[tuple[int, _Table]]:
        nouns = len(self._probes.nouns)
        tables = {c: np.empty((nouns, nouns), np.float32) for c in self._contexts}
        left = dict.fromkeys(self._contexts, nouns)
        for batch in self._batches():
            with torch.inference_mode():
                values = self._surprisal(batch)
            for (c, u), of_row in zip(batch, values, strict=True):
                tables[c][u] = of_row
                left[c] -= 1
            for c in dict.fromkeys(c for c, _ in batch):
                if not left[c]:
                    yield c, tables.pop(c)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of (context, ENV noun) whose rows have one length."""
        rows = self._probes.rows
        items = [(c, u) for c in self._contexts for u in range(len(self._probes.nouns))]
        for length in sorted({len(rows[c][u].ids) for c, u in items}):
            alike = [(c, u) for c, u in items if len(rows[c][u].ids) == length]
            step = self._fitting(length)
            yield from (alike[start : start + step] for start in range(0, len(alike), step))

    def _surprisal(self, batch: list[tuple[int, int]]) -> _Table:
        """[rows, targets] in nats."""
        rest = torch.tensor([self._probes.rows[c][u].noun + self._probes.rows[c][u].after for c, u in batch])
        begun = None if self._state is None else self._state.select(torch.tensor([self._begun[c] for c, _ in batch]))
        seen, state = self._reader.read(rest, begun)
        values: _Table = self._numbers(self._reader.surprisal(seen[:, -1], self._first))[:, self._column]
        asked = self._probes.pairs.numpy()[[u for _, u in batch]]
        values[~asked] = np.nan
        for count in sorted(set(self._tokens[self._tokens > 1].tolist())):
            self._add_rest(values, asked & (self._tokens == count), state, count)
        return values

    def _add_rest(self, values: _Table, asked: NDArray[np.bool_], state: State, count: int) -> None:
        """Add the surprisal of the tokens after the first, for targets of ``count`` tokens."""
        rows, targets = asked.nonzero()
        step = self._fitting(state.ids.shape[1] + count, count - 1)
        for start in range(0, len(rows), step):
            at, of = rows[start : start + step], targets[start : start + step]
            words = torch.tensor([self._probes.targets[v] for v in of])
            values[at, of] += self._numbers(of_rest(self._reader, state, torch.from_numpy(at), words))

    @staticmethod
    def _numbers(x: Tensor) -> _Table:
        return x.float().cpu().numpy()
