"""A corpus as memory-mapped arrays of token ids.

A corpus folder holds ``tokens.npy`` (int32 ids, all documents end to end), ``documents.npy`` (int64 bounds, one more
than there are documents), ``starts.npy`` (int64 positions at which an utterance or a scene begins, where a training
row may start), ``documents.txt`` (a name a line) and ``statistics.json``. Documents kept from training come last. Where
documents begin with an image, ``images.json`` says where its image set lies and which images show which noun.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from symground.data.images import ImageSet
from symground.folders import images_of, read_json, write_json
from symground.panics import errors_named
from symground.shown import as_table, as_text
from symground.typed import check_path

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
    images: ImageSet | None = None
    """What documents begin with: as many ids as an image has patches (`symground.data.images`)."""
    shown: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """noun → the images that show it."""

    def __repr__(self) -> str:
        return as_text("Corpus", self._shown())

    def _repr_html_(self) -> str:
        return as_table("Corpus", self._shown())

    def _shown(self) -> dict[str, object]:
        documents = len(self.documents) - 1
        kept = documents - self.statistics.get("splits", {}).get("train", documents)
        return {
            "tokens": f"{len(self.tokens):,}",
            "documents": f"{documents:,}" + (f", {kept:,} of them for validation" if kept > 0 else ""),
            "vocabulary": f"{len(self.tokenizer):,}",
            **({"images": f"of {self.images.patches} patches, {len(self.shown)} nouns shown"} if self.images else {}),
        }

    @staticmethod
    def load(folder: str | Path, tokenizer: str | Path | None = None) -> Corpus:
        """Load the corpus in ``folder``, its tokenizer from there or from the folder ``tokenizer``.

        Raises:
            FileNotFoundError: the folder, its image set or one of their files is missing.
        """
        from transformers import PreTrainedTokenizerFast

        folder = check_path(folder, "folder")
        tokenizer = check_path(tokenizer, "tokenizer") if tokenizer else folder
        needed = [folder / f"{name}.npy" for name in ARRAYS] + [folder / "statistics.json"]
        for path in [*needed, tokenizer / "tokenizer.json"]:
            if not path.is_file():
                raise FileNotFoundError(f"{folder} is not a corpus folder: {path} is missing")
        tokens, documents, starts = map(_load_array, needed[:3])
        statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
        images, shown = None, {}
        place = images_of(folder)
        if place is not None:
            images, shown = ImageSet.load(place), read_json(folder / "images.json")["shown"]
        with errors_named(f"{tokenizer / 'tokenizer.json'}: no tokenizer that can be read"):
            words = PreTrainedTokenizerFast.from_pretrained(tokenizer)
        return Corpus(tokens, documents, starts, words, statistics, images, shown)

    @property
    def prefix(self) -> int:
        """Ids that every document begins with: an image's."""
        return self.images.patches if self.images else 0

    @property
    def counts(self) -> dict[str, int]:
        """How often each token of the vocabulary stands in the corpus."""
        words = len(self.tokenizer)
        by_id = np.bincount(self.tokens[self.tokens < words] if self.images else self.tokens, minlength=words)
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


def write_images(folder: Path, images: str | Path, final: Path, shown: Mapping[str, Sequence[int]]) -> None:
    """Where the image set of a corpus is, seen from the folder that is ``final`` in the end: within its study by the
    way there, so that a study can be moved; elsewhere by its full path."""
    place, study = Path(images).resolve(), final.resolve().parent
    where = os.path.relpath(place, final.resolve()) if place.is_relative_to(study) else str(place)
    write_json(folder / "images.json", {"folder": where, "shown": shown})


def _load_array(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged or cut short ({error})") from error
    return array
