"""Builds a corpus from documents of text tokens: ids go to temporary files, and the vocabulary is fixed at the end."""

from __future__ import annotations

import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from symground.data.files import create_array
from symground.data.sequences.corpus import Corpus, write_description, write_images
from symground.data.sequences.tokenizer import word_level_tokenizer
from symground.data.words import UNKNOWN, base_of, with_base
from symground.files import put_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Bytes of each growing array that stay in memory; the rest goes to disk.
_IN_MEMORY = 1 << 25


class CorpusBuilder:
    """Collects documents. Its memory grows with the vocabulary and the number of documents, not with their length."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """``folder``: for temporary files, which are removed at the end; the system's temporary folder by default."""
        self._ids: dict[str, int] = {}  # provisional, by first appearance
        self._tokens, self._starts = _Spool(np.int32, folder), _Spool(np.int64, folder)
        self._lengths, self._segments = array("q"), array("q")  # per document: its tokens, its segments
        self._names: list[str] = []
        self._validation = bytearray()
        self._counts: dict[str, NDArray[np.int64]] = {}  # per group of documents, by provisional id
        self._images = 0  # the number of documents with an image
        self.patches = 0
        """Patches of each image, if documents have images."""
        self.shown: dict[str, list[int]] = {}
        """noun → the indices of images that show it."""
        self.validation_images: set[int] = set()
        """Indices of the images of validation documents."""
        self.statistics: dict[str, Any] = {}

    def add(
        self, segments: Iterable[Sequence[str]], name: str = "", *, group: str = "", validation: bool = False,
        image: int | None = None, shown: Iterable[str] = (),
    ) -> None:  # fmt: skip
        """Add one document, given as its utterances or scenes, each a sequence of tokens. Empty documents are skipped.

        Args:
            segments: a training row may begin at the beginning of each.
            name: the document's name.
            group: documents of a group are counted together (:meth:`counts_by_group`).
            validation: whether the document is kept from training.
            image: the index, in an image set of ``patches`` patches each, of the image with which the document begins.
            shown: nouns for what this image shows.
        """
        words: dict[str, int] = {}
        tokens, starts = array("i"), array("q")
        for segment in segments:
            if segment:
                starts.append(len(tokens))
                tokens.extend([words.setdefault(token, len(words)) for token in segment])
        if tokens:
            ids, begin = np.frombuffer(tokens, np.int32), np.frombuffer(starts, np.int64)
            if image is not None:
                ids, begin = np.concatenate([self._patch_ids(image), ids]), begin + self.patches
                self._images += 1
                if validation:
                    self.validation_images.add(image)
                for noun in shown:
                    self.shown.setdefault(noun, []).append(image)
            self.add_encoded(list(words), ids, begin, name, group=group, validation=validation)

    def _patch_ids(self, image: int) -> NDArray[np.int32]:
        """Provisional ids of patches, which are negative."""
        first = image * self.patches
        if first + self.patches >= 2**30:
            raise ValueError(
                f"image: expected at most {2**30:,} patches in a corpus, got image {image} of {self.patches} patches"
            )
        return (-1 - first - np.arange(self.patches)).astype(np.int32)

    def add_encoded(
        self, words: Sequence[str], tokens: NDArray[np.int32], starts: NDArray[np.int64], name: str = "", *,
        group: str = "", validation: bool = False,
    ) -> None:  # fmt: skip
        """Add one document whose tokens are indices into ``words``; its segments begin at ``starts``."""
        known = np.array([self._ids.setdefault(word, len(self._ids)) for word in words], np.int32)
        ids = np.where(tokens < 0, tokens, known[np.maximum(tokens, 0)])
        self._tokens.extend(ids)
        self._starts.extend(starts)
        self._lengths.append(len(ids))
        self._segments.append(len(starts))
        self._names.append(name)
        self._validation.append(validation)
        counts = self._counts.get(group)
        if counts is None or len(counts) < len(self._ids):
            before = np.zeros(0, np.int64) if counts is None else counts
            counts = self._counts[group] = np.pad(before, (0, 2 * len(self._ids) - len(before)))
        np.add.at(counts, ids[ids >= 0], 1)

    def counts_by_group(self, lemmas: Mapping[str, str] | None = None) -> dict[str, dict[str, int]]:
        """The count of each token in each group of documents, with words replaced by their lemmas."""
        found: dict[str, dict[str, int]] = {}
        for group, by_id in self._counts.items():
            of_group = found.setdefault(group, {})
            for token, count in zip(self._ids, by_id.tolist(), strict=False):
                if count:
                    token = _lemma(token, lemmas)
                    of_group[token] = of_group.get(token, 0) + count
        return found

    def counts(self, lemmas: Mapping[str, str] | None = None) -> dict[str, int]:
        """The count of each token in all documents."""
        found: dict[str, int] = {}
        for of_group in self.counts_by_group(lemmas).values():
            for token, count in of_group.items():
                found[token] = found.get(token, 0) + count
        return found

    def tokenizer(self, min_count: int = 1, lemmas: Mapping[str, str] | None = None) -> PreTrainedTokenizerFast:
        """The tokenizer that the corpus will have; arguments as in :meth:`write`."""
        return word_level_tokenizer(self.counts(lemmas), min_count)

    def build(self, min_count: int = 1, lemmas: Mapping[str, str] | None = None) -> Corpus:
        """The corpus in memory; arguments and errors as in :meth:`write`."""
        tokenizer, final, statistics = self._finish(min_count, lemmas)
        tokens, starts = np.empty(self._tokens.length, np.int32), np.empty(self._starts.length, np.int64)
        documents = self._fill(tokens, starts, final, len(tokenizer))
        return Corpus(tokens, documents, starts, tokenizer, statistics)

    def write(
        self, folder: str | Path, min_count: int = 1, lemmas: Mapping[str, str] | None = None,
        images: str | Path | None = None,
    ) -> Corpus:  # fmt: skip
        """Write the corpus into ``folder``; a corpus that is there is replaced only at the end.

        Args:
            folder: its layout is described in `symground.data.sequences.corpus`.
            min_count: rarer tokens become [UNK].
            lemmas: form → lemma, for words as ENV and as LAN alike.
            images: the folder of the image set, if documents have images.

        Returns:
            The corpus, memory-mapped from ``folder``.

        Raises:
            ValueError: no document was added.
        """
        folder = Path(folder)
        tokenizer, final, statistics = self._finish(min_count, lemmas)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            tokens = create_array(partial / "tokens.npy", np.int32, (self._tokens.length,))
            starts = create_array(partial / "starts.npy", np.int64, (self._starts.length,))
            np.save(partial / "documents.npy", self._fill(tokens, starts, final, len(tokenizer)))
            for mapped in (tokens, starts):
                mapped.flush()
            del tokens, starts
            order = self._order()
            (partial / "documents.txt").write_text("".join(f"{self._names[i]}\n" for i in order), encoding="utf-8")
            write_description(partial, tokenizer, statistics)
            if images is not None:
                write_images(partial, images, folder, self.shown)
            put_folder(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return Corpus.load(folder)

    def _finish(
        self, min_count: int, lemmas: Mapping[str, str] | None
    ) -> tuple[PreTrainedTokenizerFast, NDArray[np.int32], dict[str, Any]]:
        """The tokenizer, the final id of each provisional id, and the statistics."""
        if not self._tokens.length:
            raise ValueError("corpus: expected at least one token, got none (no utterance was found in the input)")
        counts = self.counts(lemmas)
        tokenizer = word_level_tokenizer(counts, min_count)
        vocabulary = tokenizer.get_vocab()
        unknown = vocabulary[UNKNOWN]
        known = {token: n for token, n in counts.items() if token in vocabulary}  # other tokens became [UNK]
        final = np.array([vocabulary.get(_lemma(token, lemmas), unknown) for token in self._ids], np.int32)
        validation = sum(self._validation)
        statistics = {
            "tokens": self._tokens.length,
            "env_tokens": sum(n for token, n in known.items() if token.endswith(":<ENV>")),
            "lan_tokens": sum(n for token, n in known.items() if token.endswith(":<LAN>")),
            "unknown_tokens": sum(counts.values()) - sum(n for token, n in known.items() if token != UNKNOWN),
            "documents": len(self._lengths),
            "vocabulary": len(vocabulary),
            **({"documents_with_image": self._images, "patches": self.patches} if self._images else {}),
            **({"splits": {"train": len(self._lengths) - validation, "validation": validation}} if validation else {}),
            **self.statistics,
        }
        return tokenizer, final, statistics

    def _order(self) -> NDArray[np.int64]:
        """The order of documents: those for training first, otherwise in the order of their addition."""
        return np.argsort(np.frombuffer(bytes(self._validation), np.uint8), kind="stable").astype(np.int64)

    def _fill(
        self, tokens: NDArray[np.int32], starts: NDArray[np.int64], final: NDArray[np.int32], vocabulary: int
    ) -> NDArray[np.int64]:
        """Write tokens and starts in the final order; returns the bounds of documents.

        A patch's id is its index in the image set plus the size of the vocabulary.
        """
        order = self._order()
        lengths, segments = (np.frombuffer(x, np.int64) for x in (self._lengths, self._segments))
        documents = np.concatenate([[0], np.cumsum(lengths[order])])
        begins, places = np.empty_like(lengths), np.empty_like(lengths)
        begins[order], places[order] = documents[:-1], np.concatenate([[0], np.cumsum(segments[order])[:-1]])
        for spool, sizes, to in ((self._tokens, lengths, begins), (self._starts, segments, places)):
            for i, values in spool.pieces(sizes):
                at = slice(to[i], to[i] + len(values))
                if spool is self._tokens:
                    tokens[at] = np.where(values < 0, vocabulary - 1 - values, final[np.maximum(values, 0)])
                else:
                    starts[at] = values + begins[i]
        return documents


class _Spool:
    """A growing array that moves to a temporary file once it is long."""

    def __init__(self, dtype: type[np.generic], folder: str | Path | None) -> None:
        self._dtype = np.dtype(dtype)
        place = None if folder is None else str(folder)
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=place)  # noqa: SIM115 - lives as long as this
        self.length = 0

    def extend(self, values: NDArray[Any]) -> None:
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())
        self.length += len(values)

    def pieces(self, sizes: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[Any]]]:
        """(i, the i-th piece), for consecutive pieces of these sizes."""
        self._file.seek(0)
        for i, size in enumerate(sizes.tolist()):
            yield i, np.frombuffer(self._file.read(size * self._dtype.itemsize), self._dtype)


def _lemma(token: str, lemmas: Mapping[str, str] | None) -> str:
    if not lemmas:
        return token
    base = base_of(token)
    return token if base is None or base not in lemmas else with_base(token, lemmas[base])
