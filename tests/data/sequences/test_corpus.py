"""Loading a corpus folder, in which nothing is executed; and the parts of a corpus."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from symground.data import Corpus, CorpusBuilder
from symground.data.sequences.corpus import ARRAYS


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["a pickle", "an array of objects"])
@pytest.mark.parametrize("name", ARRAYS)
def test_a_pickle_in_place_of_an_array_is_refused_and_not_run(study: Path, name: str, form: str) -> None:
    path, mark = study / "data" / f"{name}.npy", study / "ran"
    if form == "a pickle":
        path.write_bytes(pickle.dumps(Runs(mark)))
    else:
        np.save(path, np.array([Runs(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=rf"{name}\.npy: damaged or cut short"):
        Corpus.load(study / "data", study)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Runs(mark)))
    assert mark.exists(), "the test's own pickle runs"


def test_positions_in_a_part_count_from_its_first_token() -> None:
    builder = CorpusBuilder()
    documents = [[["a"]], [["b", "c"], ["d"]], [["a"], ["b", "d", "c"], ["a", "a"]]]
    for i, document in enumerate(documents):
        builder.add(document, validation=i > 0)
    corpus = builder.build()
    for split, of_split in (("train", documents[:1]), ("validation", documents[1:])):
        part = corpus.part(split)
        words = corpus.tokenizer.convert_ids_to_tokens(part.tokens.tolist())
        bounds = np.cumsum([0, *(sum(map(len, document)) for document in of_split)])
        assert words == [word for document in of_split for segment in document for word in segment]
        assert part.documents.tolist() == bounds.tolist()
        segments = [len(segment) for document in of_split for segment in document]
        assert part.starts.tolist() == np.cumsum([0, *segments[:-1]]).tolist()
    with pytest.raises(ValueError, match="split: expected one of 'train', 'validation'; got 'test'"):
        corpus.part("test")


@pytest.mark.parametrize("content", ["{", "[]", '{"model": 3}'])
def test_a_damaged_tokenizer_is_refused(study: Path, content: str) -> None:
    (study / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json: no tokenizer that can be read"):
        Corpus.load(study / "data", study)
