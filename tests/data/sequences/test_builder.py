"""The builder: a corpus on disk or in memory has the documents added, and a failed write leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from symground.data import Corpus, CorpusBuilder
from symground.data.sequences import builder as module

WORDS = st.sampled_from(["<CHI>", "book:<ENV>", "book:<LAN>", "books:<LAN>", "a:<LAN>", "x:<ENV>"])
DOCUMENT = st.tuples(st.lists(st.lists(WORDS, max_size=4), max_size=4), st.booleans())


def filled(documents: list[tuple[list[list[str]], bool]], folder: Path | None = None) -> CorpusBuilder:
    made = CorpusBuilder(folder)
    for i, (segments, validation) in enumerate(documents):
        made.add(segments, f"d{i}", group="even" if i % 2 == 0 else "odd", validation=validation)
    return made


@given(st.lists(DOCUMENT, min_size=1, max_size=6), st.integers(1, 3), st.booleans(), st.sampled_from([1, 7, 1 << 20]))
def test_a_corpus_has_the_documents_added(
    tmp_path_factory: pytest.TempPathFactory, documents: list[tuple[list[list[str]], bool]], least: int, merge: bool,
    in_memory: int,
) -> None:  # fmt: skip
    lemmas = {"books": "book"} if merge else None
    documents = [d for d in documents if any(d[0])] or [([["<CHI>"]], False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_IN_MEMORY", in_memory)
        made = filled(documents)
        folder = tmp_path_factory.mktemp("corpus") / "c"
        stored, in_memory_corpus = made.write(folder, least, lemmas), made.build(least, lemmas)
    # Documents for training come first, otherwise in order; words become their lemmas, and rare tokens [UNK].
    ordered = [d for d in documents if not d[1]] + [d for d in documents if d[1]]
    flat = [[t for s in segments for t in s] for segments, _ in ordered]
    flat = [["book:<LAN>" if merge and t == "books:<LAN>" else t for t in tokens] for tokens in flat]
    counts = {t: sum(tokens.count(t) for tokens in flat) for t in {t for tokens in flat for t in tokens}}
    wanted = [t if counts[t] >= least else "[UNK]" for tokens in flat for t in tokens]
    for corpus in (stored, in_memory_corpus, Corpus.load(folder)):
        assert corpus.tokenizer.decode(corpus.tokens) == " ".join(wanted)
        assert corpus.documents.tolist() == np.cumsum([0, *map(len, flat)]).tolist()
        starts = [sum(map(len, flat[:i])) + sum(map(len, segments[:j])) for i, (segments, _) in enumerate(ordered)
                  for j, s in enumerate(segments) if s]  # fmt: skip
        assert corpus.starts.tolist() == starts
    names = [f"d{i}" for i, (_, late) in enumerate(documents) if not late]
    names += [f"d{i}" for i, (_, late) in enumerate(documents) if late]
    assert (folder / "documents.txt").read_text().split() == names
    by_group = made.counts_by_group(lemmas)
    assert {t: sum(g.get(t, 0) for g in by_group.values()) for t in counts} == counts


def test_parts_are_the_documents_for_training_and_for_validation() -> None:
    corpus = filled([([["a:<LAN>", "x:<ENV>"]], False), ([["book:<LAN>"], ["a:<LAN>"]], True)]).build()
    train, late = corpus.part("train"), corpus.part("validation")
    assert [corpus.tokenizer.decode(part.tokens) for part in (train, late)] == ["a:<LAN> x:<ENV>", "book:<LAN> a:<LAN>"]
    assert (train.documents.tolist(), train.starts.tolist()) == ([0, 2], [0])
    assert (late.documents.tolist(), late.starts.tolist()) == ([0, 2], [0, 1])
    whole = filled([([["a:<LAN>"]], False)]).build()
    assert whole.part("train").tokens.tolist() == whole.tokens.tolist()
    with pytest.raises(ValueError, match="no document of this corpus was kept for validation"):
        whole.part("validation")
    with pytest.raises(ValueError, match="split: expected one of 'train', 'validation'; got 'test'"):
        whole.part("test")


def test_a_failed_write_keeps_the_earlier_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = filled([([["a:<LAN>"]], False)]).write(tmp_path / "c")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_description", full)
    with pytest.raises(OSError, match="No space left on device"):
        filled([([["book:<LAN>"]], False)]).write(tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert Corpus.load(tmp_path / "c").tokenizer.get_vocab() == first.tokenizer.get_vocab()


def test_long_documents_move_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IN_MEMORY", 1 << 12)
    made = CorpusBuilder(tmp_path)
    for i in range(50):
        made.add([["a:<LAN>", "book:<LAN>"] * 500], f"d{i}")
    assert made._tokens._file._rolled  # type: ignore[attr-defined]
    assert made.build().statistics["tokens"] == 50_000


def test_a_builder_without_documents_is_refused() -> None:
    with pytest.raises(ValueError, match="corpus: expected at least one token, got none"):
        CorpusBuilder().build()
