"""A corpus as memory-mapped arrays of token ids, and the builder that writes it.

A corpus folder holds ``tokens.npy`` (int32 ids, all documents end to end), ``documents.npy`` (int64 bounds, one more
than there are documents), ``starts.npy`` (int64 positions at which an utterance or a scene begins, where a training
row may start) and ``statistics.json``.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from symground.data.tokenizer import word_level_tokenizer
from symground.data.words import UNKNOWN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ARRAYS = ("tokens", "documents", "starts")


@dataclass(frozen=True)
class Corpus:
    """Token ids with document bounds. Arrays loaded from a folder are memory-mapped."""

    tokens: NDArray[np.int32]
    documents: NDArray[np.int64]
    starts: NDArray[np.int64]
    tokenizer: PreTrainedTokenizerFast
    statistics: dict[str, Any]

    @staticmethod
    def load(folder: str | Path, tokenizer: str | Path | None = None) -> Corpus:
        """Load the corpus in ``folder``, its tokenizer from there or from the folder ``tokenizer``.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
        """
        from transformers import PreTrainedTokenizerFast

        folder = Path(folder)
        tokenizer = Path(tokenizer) if tokenizer else folder
        needed = [folder / f"{name}.npy" for name in ARRAYS] + [folder / "statistics.json"]
        for path in [*needed, tokenizer / "tokenizer.json"]:
            if not path.is_file():
                raise FileNotFoundError(f"{folder} is not a corpus folder: {path} is missing")
        tokens, documents, starts = map(_load_array, needed[:3])
        statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
        return Corpus(tokens, documents, starts, PreTrainedTokenizerFast.from_pretrained(tokenizer), statistics)

    @property
    def counts(self) -> dict[str, int]:
        """How often each token of the vocabulary stands in the corpus."""
        by_id = np.bincount(self.tokens, minlength=len(self.tokenizer))
        return {token: int(by_id[i]) for token, i in self.tokenizer.get_vocab().items()}

    def save(self, folder: str | Path) -> None:
        """Write the corpus and its tokenizer into ``folder``; what stood there before is replaced at the end only."""
        folder = Path(folder)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in ARRAYS:
            np.save(partial / f"{name}.npy", getattr(self, name))
        (partial / "statistics.json").write_text(json.dumps(self.statistics, indent=1), encoding="utf-8")
        self.tokenizer.save_pretrained(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)


def _load_array(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged or cut short ({error})") from error
    return array


class CorpusBuilder:
    """Collects documents as text tokens, keeping only ids in memory; the vocabulary is fixed at the end."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}  # provisional, by first appearance
        self._tokens = array("i")
        self._documents = array("q", [0])
        self._starts = array("q")
        self.statistics: dict[str, Any] = {}

    def add(self, segments: Iterable[Sequence[str]]) -> None:
        """Add one document, given as its utterances or scenes, each a sequence of tokens."""
        ids = self._ids
        for segment in segments:
            if segment:
                self._starts.append(len(self._tokens))
                self._tokens.extend([ids.setdefault(token, len(ids)) for token in segment])
        if len(self._tokens) > self._documents[-1]:
            self._documents.append(len(self._tokens))

    def build(self, min_count: int = 1) -> Corpus:
        """Fix the vocabulary (tokens seen ``min_count`` times or more; others become [UNK]) and return the corpus.

        Raises:
            ValueError: nothing was added.
        """
        if not self._tokens:
            raise ValueError("corpus: expected at least one token, got none (no utterance was found in the input)")
        provisional = np.frombuffer(self._tokens, dtype=np.int32)
        by_id = np.bincount(provisional, minlength=len(self._ids))
        counts = {token: int(by_id[i]) for token, i in self._ids.items()}
        tokenizer = word_level_tokenizer(counts, min_count)
        vocabulary = tokenizer.get_vocab()
        final = np.array([vocabulary.get(token, vocabulary[UNKNOWN]) for token in self._ids], dtype=np.int32)
        statistics = {
            "tokens": len(provisional),
            "env_tokens": sum(n for token, n in counts.items() if token.endswith(":<ENV>")),
            "lan_tokens": sum(n for token, n in counts.items() if token.endswith(":<LAN>")),
            "documents": len(self._documents) - 1,
            "vocabulary": len(vocabulary),
            **self.statistics,
        }
        documents, starts = np.array(self._documents, dtype=np.int64), np.array(self._starts, dtype=np.int64)
        return Corpus(final[provisional], documents, starts, tokenizer, statistics)
