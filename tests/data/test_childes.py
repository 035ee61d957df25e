"""Transcripts into a corpus: the account of every utterance, what is set aside, the same bytes however it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from symground.data import ChatSettings, Corpus, CorpusBuilder, add_transcripts, noun_list, nouns_over_threshold
from symground.data.childes import corpora_of, read_lemmas

HEADER = "@UTF8\n@Begin\n@Participants:\tCHI Target_Child, MOT Mother\n"
GOOD = HEADER + "*MOT:\tlook .\n%act:\tsits\n*CHI:\t0 .\n@End\n"


def write(folder: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.cha"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def read(path: Path, settings: ChatSettings | None = None, **options: Any) -> tuple[CorpusBuilder, dict[str, Any]]:
    builder = CorpusBuilder()
    add_transcripts(builder, [path], settings or ChatSettings(), **options)
    return builder, builder.statistics["chat"]


def test_every_utterance_and_file_is_accounted_for(tmp_path: Path) -> None:
    write(
        tmp_path,
        A__Brown__one=GOOD, A__Brown__two=HEADER + "*MOT:\thi .\n*MOT:\tyou .\n@End\n", A__Bates__x=GOOD,
        B__Wells__latin=GOOD.removeprefix("@UTF8\n").replace("look", "café").encode("latin-1"),
        B__Wells__cut=GOOD.removesuffix("@End\n"), B__Wells__bytes=GOOD.replace("look", "café").encode("latin-1"),
    )  # fmt: skip
    builder, chat = read(tmp_path)
    files = {name: chat[name] for name in ("files", "files_kept", "files_left_out", "files_set_aside", "latin_1")}
    assert files == {"files": 6, "files_kept": 3, "files_left_out": 1, "files_set_aside": 2, "latin_1": 1}
    assert chat["main_tiers"] == 8
    assert (chat["utterances"], chat["silent"], chat["other_speakers"], chat["in_left_out_files"]) == (3, 3, 0, 2)
    assert chat["skipped"] == [
        {"file": "B/Wells/bytes.cha", "line": 4, "reason": "byte 0xe9 is not UTF-8, which its first line declares"},
        {"file": "B/Wells/cut.cha", "line": 6, "reason": "the transcript ends here, without @End"},
    ]
    assert {name: of["files_kept"] for name, of in chat["corpora"].items()} == {
        "A/Brown": 1,
        "A/Bates": 1,
        "B/Wells": 1,
    }
    assert builder.counts_by_group()["B/Wells"]["café:<LAN>"] == 1
    with pytest.raises(ValueError, match=r"B/Wells/bytes\.cha, line 4: byte 0xe9"):
        read(tmp_path, strict=True)


def test_one_process_or_several_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from symground.data import childes

    write(tmp_path / "in", **{f"{c}__{i:02}": GOOD.replace("look", f"word{i}") for c in "AB" for i in range(12)})
    write(tmp_path / "in", B__broken="*")
    monkeypatch.setattr(childes, "_BATCH", 300)
    folders = []
    for jobs in (1, 3):
        builder, chat = read(tmp_path / "in", validation=0.3, jobs=jobs)
        builder.write(tmp_path / f"jobs{jobs}")
        assert chat["files_kept"] == 24
        folders.append(tmp_path / f"jobs{jobs}")
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted(path.name for path in folders[1].iterdir())
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_validation_is_a_matter_of_the_name(tmp_path: Path) -> None:
    write(tmp_path, **{f"a{i:02}": GOOD.replace("look", f"word{i}") for i in range(40)})
    held = []
    for chosen in (range(40), range(0, 40, 2)):
        write(tmp_path / str(len(chosen)), **{f"a{i:02}": GOOD.replace("look", f"word{i}") for i in chosen})
        builder, _ = read(tmp_path / str(len(chosen)), validation=0.3)
        corpus = builder.build()
        part = corpus.part("validation")
        held.append({token for token in corpus.tokenizer.decode(part.tokens).split() if token.startswith("word")})
        assert corpus.statistics["splits"]["validation"] == len(part.documents) - 1 == len(held[-1])
        train = corpus.part("train")
        assert len(train.tokens) + len(part.tokens) == len(corpus.tokens)
        assert set(corpus.tokenizer.decode(train.tokens).split()).isdisjoint(held[-1])
    assert 4 <= len(held[0]) <= 20
    assert held[1] == {word for word in held[0] if int(word[4:].partition(":")[0]) % 2 == 0}


def test_lemmas_merge_both_forms(tmp_path: Path) -> None:
    text = HEADER + "*MOT:\tdogs .\n%mor:\tn|dog-PL .\n%act:\ttwo dogs\n*MOT:\tdog .\n%mor:\tn|dog .\n@End\n"
    write(tmp_path, a=text)
    builder = CorpusBuilder()
    lemmas = add_transcripts(builder, [tmp_path], ChatSettings(lemmas="mor"))
    assert lemmas == {"dogs": "dog"}
    corpus = builder.build(lemmas=lemmas)
    assert corpus.counts["dog:<LAN>"] == 2
    assert corpus.counts["dog:<ENV>"] == 1
    assert "dogs:<LAN>" not in corpus.counts
    table = tmp_path / "lemmas.tsv"
    table.write_text("two\tnumber\n")
    builder = CorpusBuilder()
    lemmas = add_transcripts(builder, [tmp_path], ChatSettings(lemmas=str(table)))
    assert builder.counts(lemmas)["number:<ENV>"] == 1
    table.write_text("two\tnumber\nthree\n")
    with pytest.raises(ValueError, match="line 2: expected 'form TAB lemma', got 'three'"):
        read_lemmas(table)
    with pytest.raises(FileNotFoundError, match="lemmas: expected 'mor' or a file"):
        read(tmp_path, ChatSettings(lemmas="nowhere"))


def test_corpora_are_the_first_two_folders_below_what_all_share() -> None:
    def names(*given: str) -> list[str]:
        return list(corpora_of(given).values())

    assert names("x/NA/Brown/Adam/1.cha", "x/NA/Bates/2.cha", "x/UK/Wells/3.cha") == [
        "NA/Brown",
        "NA/Bates",
        "UK/Wells",
    ]
    assert names("NA/Brown/Adam/1.cha", "NA/Brown/Eve/2.cha") == ["Eve", "Adam"][::-1]
    assert names("1.cha", "2.cha") == [".", "."]
    assert names("Brown/1.cha", "Brown/2.cha") == ["Brown", "Brown"]


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.cha file in"):
        read(tmp_path)
    write(tmp_path, a=HEADER + "*MOT:\tlook .\n@End\n")
    with pytest.raises(
        ValueError, match="none of 1 transcripts has 1 or more of the tiers %act, %sit, %gpx and a turn"
    ):
        read(tmp_path)
    write(tmp_path, b="*")
    with pytest.raises(ValueError, match=r"1 could not be read, the first: b\.cha, line 1: expected a speaker's code"):
        read(tmp_path)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="validation: expected a share from 0 to below 1"):
            read(tmp_path, validation=share)
    with pytest.raises(ValueError, match="min_env_tiers: expected at least 0, got -1"):
        ChatSettings(min_env_tiers=-1)


@pytest.mark.real_data
def test_real_sample(real_data: Path) -> None:
    folder = real_data / "childes" / "sample_raw"
    builder, chat = read(folder, ChatSettings(min_env_tiers=0))
    assert (chat["files"], chat["files_kept"], chat["skipped"]) == (80, 80, [])
    # Every %act, %sit and %gpx line that has a word on it, counted in the raw bytes, is in the corpus.
    lines = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.cha"))).decode().splitlines()
    assert sum(line.startswith(("%act:", "%sit:", "%gpx:")) for line in lines) == 15345
    spoken = sum(line.startswith("*") for line in lines)
    # Of the other 1,140, with no ENV tier, a pattern finds 1,138 to hold pauses, zeros, fillers and events only; the
    # remaining two, read by eye, are wholly retraced.
    assert (spoken, chat["main_tiers"], chat["utterances"], chat["silent"]) == (33971, 33971, 32831, 1140)
    assert builder.build(5).statistics["env_tokens"] > 100_000


@pytest.mark.real_data
@pytest.mark.slow
def test_the_whole_archive_is_accounted_for(real_data: Path, tmp_path: Path) -> None:
    builder = CorpusBuilder(tmp_path)
    archive = real_data / "childes" / "eng_na_uk_2013_slim.tar.xz"
    add_transcripts(builder, [archive], ChatSettings(min_env_tiers=0), validation=0.01)
    corpus = builder.write(tmp_path / "corpus", 5)
    chat = corpus.statistics["chat"]
    fates = ("utterances", "silent", "other_speakers", "in_left_out_files")
    assert (chat["files"], chat["files_set_aside"]) == (3570, 0)
    assert chat["main_tiers"] == sum(chat[name] for name in fates) == 2_167_845
    assert 890_000 < corpus.statistics["env_tokens"] < 920_000
    assert 95 <= len(nouns_over_threshold(corpus.counts, 100, noun_list("cdi"))) <= 105
    assert len(chat["corpora"]) == 43
    again = Corpus.load(tmp_path / "corpus")
    assert isinstance(again.tokens, np.memmap)
    assert again.documents[-1] == len(again.tokens) == corpus.statistics["tokens"]
