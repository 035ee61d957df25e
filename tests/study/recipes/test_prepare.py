"""A study's folder from corpora in their real forms: its files, its page, and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from symground.cli import main
from symground.data import ChatSettings, Corpus, DialogSettings
from symground.files import read_json
from symground.recipes import CorpusSettings, prepare

pytestmark = pytest.mark.trains

HEADER = "@UTF8\n@Begin\n@Participants:\tCHI Target_Child, MOT Mother\n"
NOUNS = ("book", "ball", "dog")


def transcript(noun: str, times: int = 4) -> str:
    turn = f"*MOT:\tlook at the {noun} .\n%act:\ttakes {noun} from MOT\n"
    turn += f"*CHI:\there is your {noun} .\n%act:\tdrops {noun}\n"
    return f"{HEADER}{turn * times}@End\n"


@pytest.fixture
def childes(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    for corpus in ("A/Brown", "A/Bates"):
        for noun in NOUNS:
            path = folder / corpus / f"{noun}.cha"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(transcript(noun))
    (folder / "A" / "Bates" / "x<script>.cha").write_text("*")
    return folder


SETTINGS = CorpusSettings(min_noun_count=4, min_word_count=2, validation=0.0)


def test_transcripts(childes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study"
    corpus = prepare(["childes", str(childes)], study, SETTINGS)
    config = read_json(study / "config.json")
    assert set(config["nouns"]) == set(NOUNS)
    assert {tuple(context[:2]) for context in config["contexts"]} == {("takes {} from MOT", "here is your")}
    assert corpus.statistics["chat"]["files_kept"] == 6
    said = capsys.readouterr().err
    assert "set aside: A/Bates/x<script>.cha, line 1: expected a speaker's code" in said
    assert "context left out" in said
    page = (study / "corpus.html").read_text()
    assert "<td>Brown</td>" in page
    assert "x&lt;script&gt;.cha" in page
    assert page.count("<script") == 1  # the page's own
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert {path.name for path in study.iterdir()} == {
        "config.json", "corpus.html", "data", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    # Paths without a kind are transcripts. The same corpus loads the existing folder; another corpus is refused.
    assert prepare(["childes", str(childes)], study, SETTINGS).tokens.tolist() == corpus.tokens.tolist()
    with pytest.raises(ValueError, match="holds another study: corpus is .* there, .* here"):
        prepare([str(childes)], study, SETTINGS)
    alone = prepare([str(childes)], tmp_path / "alone", SETTINGS)
    assert alone.tokens.tolist() == corpus.tokens.tolist()


def test_same_input_same_bytes(childes: Path, tmp_path: Path) -> None:
    first, second = (tmp_path / name / "study" for name in "ab")
    for study in (first, second):
        prepare(["childes", str(childes)], study, SETTINGS)
    for path in sorted(first.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path


def test_folded_and_merged_words_are_probed_in_that_form(childes: Path, tmp_path: Path) -> None:
    table = tmp_path / "lemmas.tsv"
    table.write_text("takes\ttake\nball\tbook\n")
    chat = ChatSettings(fold_case=True, lemmas=str(table))
    prepare(["childes", str(childes)], tmp_path / "s", CorpusSettings(chat=chat, min_noun_count=4, min_word_count=2))
    config = read_json(tmp_path / "s" / "config.json")
    assert set(config["nouns"]) == {"book", "dog"}
    assert config["contexts"][0][:2] == ["take {} from mot", "here is your"]


def test_dialogues(tmp_path: Path) -> None:
    entries = [
        {"img": f"{i}.jpg", "dialog": [f"a {noun} on a wooden table", f"how big is the {noun}? the {noun} is small"]}
        for i, noun in enumerate(NOUNS * 20)
    ]
    (tmp_path / "d.json").write_text(json.dumps(entries))
    settings = CorpusSettings(min_noun_count=4, min_word_count=2, validation=0.2, visdial=DialogSettings(rounds=1))
    corpus = prepare(["visdial", str(tmp_path / "d.json")], tmp_path / "s", settings)
    config = read_json(tmp_path / "s" / "config.json")
    assert config["contexts"] == [["a {} on a wooden table", "how big is the", [], ["CAP", "QUE"], "env"]]
    assert config["visdial"]["rounds"] == 1
    assert 0 < corpus.statistics["splits"]["validation"] < 30
    assert len(corpus.part("train").documents) - 1 == corpus.statistics["splits"]["train"]
    with pytest.raises(ValueError, match="holds another study: visdial is"):
        prepare(
            ["visdial", str(tmp_path / "d.json")], tmp_path / "s", CorpusSettings(min_noun_count=4, min_word_count=2)
        )


def test_what_cannot_become_a_study_leaves_nothing(childes: Path, tmp_path: Path) -> None:
    for settings, message in (
        (CorpusSettings(min_noun_count=1000), "expected two that occur at least 1000 times"),
        (CorpusSettings(min_noun_count=4, min_word_count=2, noun_categories=("beasts",)), "categories: expected"),
        (CorpusSettings(min_noun_count=4, min_word_count=1000), "contexts: the vocabulary lacks words"),
        (CorpusSettings(min_noun_count=4, strict=True), r"x<script>\.cha, line 1: expected a speaker's code"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(["childes", str(childes)], tmp_path / "s", settings)
        assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": 1.0}, r"validation: expected a number in \[0, 1\), got 1.0"),
        ({"jobs": 0}, "jobs: expected an integer of at least 1, got 0"),
        ({"min_word_count": 0}, "min_word_count: expected an integer of at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorpusSettings(**changes)


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (["generated", "x"], "expected nothing after 'generated', got generated x"),
        (["childes"], "expected paths after 'childes', got childes"),
        (["visdial"], "expected paths after 'visdial', got visdial"),
    ],
)
def test_bad_kinds_are_named(
    corpus: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *corpus, "--out", str(tmp_path / "s")]) != 0
    assert message in capsys.readouterr().err


@pytest.mark.real_data
@pytest.mark.slow
def test_a_model_learns_on_documents_for_training_only(real_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    arguments = ["--min-noun-count", "60", "--validation", "0.2", "--steps", "2", "--batch-size", "2", "--length", "16"]
    arguments += ["--draws", "1", "--intervene-contexts", "1", "--checkpoints", "0"]
    assert main(["run", "childes", str(real_data / "childes" / "sample_raw"), "--out", str(out), *arguments]) == 0
    corpus = Corpus.load(out / "data", out)
    trained = read_json(out / "gpt2-4l" / "seed0" / "config.json")["corpus"]["tokens"]
    assert trained == len(corpus.part("train").tokens) < len(corpus.tokens)
