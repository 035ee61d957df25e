"""A corpus as memory-mapped arrays of token ids.

A corpus folder holds ``tokens.npy`` (int32 ids, all documents end to end), ``documents.npy`` (int64 bounds, one more
than there are documents), ``starts.npy`` (int64 positions at which an utterance or a scene begins, where a training
row may start), ``documents.txt`` (a name a line) and ``statistics.json``. Documents kept from training come last.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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

    def part(self, split: str) -> Corpus:
        """The documents for "train", or those for "validation"; all are for training where none were kept from it.

        Raises:
            ValueError: another name, or a validation that has no documents.
        """
        count = len(self.documents) - 1
        first = self.statistics.get("splits", {}).get("train", count)
        if split not in ("train", "validation"):
            raise ValueError(f"split: expected 'train' or 'validation', got {split!r}")
        if split == "validation" and first == count:
            raise ValueError("split: no document of this corpus was kept for validation (--validation)")
        low, high = (0, first) if split == "train" else (first, count)
        begin, end = self.documents[low], self.documents[high]
        among = slice(*np.searchsorted(self.starts, [begin, end]))
        documents, starts = self.documents[low : high + 1], self.starts[among]
        if begin:
            documents, starts = documents - begin, starts - begin
        return replace(self, tokens=self.tokens[begin:end], documents=documents, starts=starts)


def write_description(folder: Path, tokenizer: PreTrainedTokenizerFast, statistics: dict[str, Any]) -> None:
    """What stands beside the arrays."""
    (folder / "statistics.json").write_text(json.dumps(statistics, indent=1, ensure_ascii=False), encoding="utf-8")
    tokenizer.save_pretrained(folder)


def _load_array(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged or cut short ({error})") from error
    return array
