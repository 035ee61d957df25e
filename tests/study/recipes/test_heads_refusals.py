"""Settings, models and questions that ``symground heads`` refuses, each by name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import symground as sg
from symground.data import read_questions, write_questions
from symground.files import read_json
from symground.models import load_processor
from symground.recipes import heads as recipe
from tests.study.recipes.heads_command import Folder, names, run


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--threshold", "0.2", "threshold"), ("--draws", "3", "draws"), ("--checked", "9", "checked"),
        ("--factors", "3", "factors"), ("--seed", "1", "seed"), ("--limit", "4", "limit"),
        ("--instruction", " Say.", "instruction"), ("--system", "Look.", "system"), ("--dtype", "bfloat16", "dtype"),
    ],
)  # fmt: skip
def test_other_settings_are_refused_by_name(
    done: Path, llava_folder: Folder, capsys: pytest.CaptureFixture[str], option: str, value: str, named: str
) -> None:
    assert run(llava_folder, done, option, value) == 1
    said = capsys.readouterr().err
    assert f"out: {done} has results with other settings: {named} is " in said
    assert said.count(" there, ") == 1


def test_another_model_or_other_questions_are_refused(
    done: Path, llava_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(llava_folder, done, pairs=llava_folder / "others.json", model=llava_folder) == 1
    said = capsys.readouterr().err
    assert f"out: {done} has results with other settings: model is " in said
    before, now = (str(llava_folder / name) for name in ("questions.json", "others.json"))
    assert f"; pairs is {before!r} there, {now!r} here. Choose another folder" in said
    assert read_json(done / "config.json")["model"] == str(llava_folder / "model")


def test_a_folder_with_other_things_is_refused(
    llava_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert run(llava_folder, tmp_path) == 1
    assert f"out: {tmp_path} has other files; choose another folder" in capsys.readouterr().err
    assert names(tmp_path) == ["notes.txt"]
    # The folder of a model also has a config.json.
    model = tmp_path / "model"
    shutil.copytree(llava_folder / "model", model)
    before = (model / "config.json").read_text()
    assert run(llava_folder, model, model=model) == 1
    assert f"out: {model} has other files; choose another folder" in capsys.readouterr().err
    assert (model / "config.json").read_text() == before


def test_what_failed_before_its_first_table_may_be_put_right(
    llava_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(llava_folder, out, pairs=tmp_path / "mistyped.json") == 1
    assert f"path: {tmp_path / 'mistyped.json'} does not exist" in capsys.readouterr().err

    def stop(*_: Any, **__: Any) -> None:
        raise ValueError("far enough")

    monkeypatch.setattr(recipe, "answers", stop)
    assert run(llava_folder, out) == 1
    assert capsys.readouterr().err.endswith("symground: far enough\n")
    assert read_json(out / "config.json")["pairs"] == str(llava_folder / "questions.json")


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ("draws: expected an integer of at least 1, got 0", ["--draws", "0"]),
        ("checked: expected an integer of at least 1, got -1", ["--checked", "-1"]),
        ("limit: expected an integer of at least 1, got 0", ["--limit", "0"]),
        ("pictures: expected an integer of at least 0, got -2", ["--pictures", "-2"]),
        ("batch_size: expected an integer of at least 1, got 0", ["--batch-size", "0"]),
        ("threshold: expected a number in (0, 1], got 30.0", ["--threshold", "30"]),
        ("factors: expected at least one, got none", ["--factors"]),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(
    llava_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str], message: str, more: list[str]
) -> None:
    assert run(llava_folder, tmp_path / "out", *more) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_of_text_alone_is_refused(
    llava_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "gpt2"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(llava_folder / "model")
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=24, n_layer=1, n_head=3)
    GPT2LMHeadModel(config).save_pretrained(text)
    assert type(sg.load(text)) is GPT2LMHeadModel
    for lacking in (True, False):  # a tokenizer; then one that says that it goes with a processor
        assert run(llava_folder, tmp_path / "out", model=text) == 1
        assert f"symground: {text}: expected a processor of images and text" in capsys.readouterr().err
        with pytest.raises(ValueError, match="expected a processor of images and text"):
            load_processor(text)
        if lacking:
            tokenizer.save_pretrained(text)
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>")
    plain.save_pretrained(text)
    with pytest.raises(ValueError, match=r"expected a processor of images and text, got \w+$"):
        load_processor(text)
    gone = tmp_path / "gone"
    assert run(llava_folder, tmp_path / "out", model=gone) == 1
    assert f"symground: {gone} does not exist, and is no model's name on the hub" in capsys.readouterr().err


def test_pairs_without_their_images_are_refused(
    llava_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "questions.json"
    shutil.copy(llava_folder / "questions.json", alone)
    assert run(llava_folder, tmp_path / "out", pairs=alone) == 1
    assert "image: 24 of 24 do not exist, such as 0.png" in capsys.readouterr().err
    (tmp_path / "images").mkdir()
    assert run(llava_folder, tmp_path / "out", "--images", str(tmp_path / "images"), pairs=alone) == 1
    assert f"images: 6 of 6 are not in {tmp_path / 'images'}" in capsys.readouterr().err
    assert run(llava_folder, tmp_path / "out", "--images", str(tmp_path / "gone"), pairs=alone) == 1
    assert f"images: expected a folder, got {tmp_path / 'gone'}" in capsys.readouterr().err


@pytest.mark.parametrize(("keep", "same"), [(slice(0, 4), "picture"), (slice(0, None, 2), "answer")])
def test_questions_that_ask_one_thing_only_are_refused(
    llava_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: slice, same: str
) -> None:
    asked = read_questions(llava_folder / "questions.json")
    kept = asked[keep] if same == "picture" else [question for question in asked if question.answer == "yes"]
    write_questions(tmp_path / "few.json", kept)
    assert run(llava_folder, tmp_path / "out", pairs=tmp_path / "few.json") == 1
    said = capsys.readouterr().err
    assert re.search(rf"pairs: all of the \d+ checked questions have the same {same}", said)
    assert names(tmp_path / "out") == ["config.json"]


def test_where_patches_lie_in_no_grid_pictures_are_refused_first(
    llava_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("symground.data.vision.prompts.patch_maps", lambda *_: ())
    assert run(llava_folder, tmp_path / "out", "--pictures", "1") == 1
    assert "pictures: the position of this model's image tokens in a picture is unknown" in capsys.readouterr().err
    assert names(tmp_path / "out") == ["config.json"]
