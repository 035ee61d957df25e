"""A corpus as memory-mapped arrays of token ids.

A corpus folder has ``tokens.npy`` (int32 ids of all documents, concatenated), ``documents.npy`` (int64 bounds, one more
than there are documents), ``starts.npy`` (int64 positions at which an utterance or a scene begins, and a training row
may start), ``documents.txt`` (one name per line) and ``statistics.json``. Documents kept from training come last. If
documents begin with an image, ``images.json`` has the path of the image set and the images that show each noun.
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

from symground.data.sequences.image_set import ImageSet
from symground.display import as_table, as_text
from symground.errors import check_path, choice, errors_named
from symground.files import images_of, read_json, write_json

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
    """The images with which documents begin, each as many ids as it has patches (`image_set.py`)."""
    shown: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """noun → the indices of images that show it."""

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
        """Load the corpus in ``folder``, with its tokenizer from there or from the folder ``tokenizer``.

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
        statistics = read_json(folder / "statistics.json")
        images, shown = None, {}
        place = images_of(folder)
        if place is not None:
            images, shown = ImageSet.load(place), read_json(folder / "images.json")["shown"]
        with errors_named(f"{tokenizer / 'tokenizer.json'}: no tokenizer that can be read"):
            words = PreTrainedTokenizerFast.from_pretrained(tokenizer)
        return Corpus(tokens, documents, starts, words, statistics, images, shown)

    @property
    def prefix(self) -> int:
        """The number of ids of the image with which every document begins."""
        return self.images.patches if self.images else 0

    @property
    def counts(self) -> dict[str, int]:
        """The count of each token of the vocabulary in the corpus."""
        words = len(self.tokenizer)
        by_id = np.bincount(self.tokens[self.tokens < words] if self.images else self.tokens, minlength=words)
        return {token: int(by_id[i]) for token, i in self.tokenizer.get_vocab().items()}

    def part(self, split: str) -> Corpus:
        """The documents for "train" or for "validation". If none were kept from training, all are for training.

        Raises:
            ValueError: the name is another one, or the corpus has no documents for validation.
        """
        count = len(self.documents) - 1
        first = self.statistics.get("splits", {}).get("train", count)
        choice("split", split, ("train", "validation"))
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
    """Write the files beside the arrays."""
    (folder / "statistics.json").write_text(json.dumps(statistics, indent=1, ensure_ascii=False), encoding="utf-8")
    tokenizer.save_pretrained(folder)


def write_images(folder: Path, images: str | Path, final: Path, shown: Mapping[str, Sequence[int]]) -> None:
    """Write where the corpus's image set is, as seen from the folder ``final``: a relative path within its study, so
    that a study can be moved; else an absolute path."""
    place, study = Path(images).resolve(), final.resolve().parent
    where = os.path.relpath(place, final.resolve()) if place.is_relative_to(study) else str(place)
    write_json(folder / "images.json", {"folder": where, "shown": shown})


def _load_array(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged or cut short ({error})") from error
    return array
