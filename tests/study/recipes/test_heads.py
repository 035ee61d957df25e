"""``symground heads`` and ``symground pope``, end to end on a tiny LLaVA, and their answers to bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import symground as sg
from symground.cli import main
from symground.data import Question, read_questions, write_questions
from symground.files import read_json
from symground.models import load_processor, mixers
from symground.recipes import heads as recipe
from symground.reports.figures import figure_of

FEW = ["--draws", "2", "--checked", "8", "--factors", "0", "2", "--threshold", "0.4"]
TABLES = [
    "answers", "calibration", "detectors", "flow", "heads", "interventions", "pope", "stability", "steering",
]  # fmt: skip
Folder = Path


def run(folder: Folder, out: Path, *more: str, pairs: Path | None = None, model: Path | None = None) -> int:
    questions = pairs or folder / "questions.json"
    return main(["heads", str(model or folder / "model"), "--pairs", str(questions), "--out", str(out), *FEW, *more])


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


@pytest.fixture(scope="module")
def done(llava_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("heads") / "out"
    assert run(llava_folder, out, "--pictures", "2") == 0
    return out


def refuse_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be loaded")

    for name in ("load", "load_processor", "read_questions"):
        monkeypatch.setattr(recipe, name, no)


def test_every_table_is_there_and_tidy(done: Path, llava_folder: Folder) -> None:
    assert names(done) == sorted(
        ["config.json", *(f"{name}.parquet" for name in TABLES), "picture-0000.png", "picture-0001.png"]
    )
    table = {name: pd.read_parquet(done / f"{name}.parquet") for name in TABLES}
    asked = read_questions(llava_folder / "questions.json")
    assert table["answers"]["image"].tolist() == [question.image for question in asked]
    assert {*table["answers"]["said"]} <= {"yes", "no"}
    assert table["pope"]["kind"].tolist() == ["popular", "random", "all"]
    assert table["pope"]["questions"].tolist() == [12, 12, 24]
    right = (table["answers"]["said"] == table["answers"]["answer"]).mean()
    assert table["pope"]["accuracy"].iloc[2] == pytest.approx(right)
    heads = table["heads"]
    assert heads[["kind", "denominator"]].drop_duplicates().values.tolist() == [
        ["aggregate", "row"], ["aggregate", "matrix"],
    ]  # fmt: skip
    assert len(heads) == 2 * 8
    assert (heads["examples"] == 24).all()
    assert not np.allclose(heads["share"], heads["null"])
    assert table["stability"]["denominator"].tolist() == ["row", "matrix"]
    assert (table["stability"]["contexts"] == 6).all()
    assert len(table["flow"]) == 24
    assert table["detectors"]["detector"].tolist()[0] == "flow"
    assert (table["detectors"]["examples"] == 24).all()
    assert {*table["calibration"]["detector"]} == {*table["detectors"]["detector"]}
    interventions = table["interventions"]
    assert interventions[["selection", "denominator"]].values.tolist() == [
        [selection, denominator] for selection in ("example", "held-out") for denominator in ("row", "matrix")
    ]
    assert (interventions[["examples", "draws"]] == [8, 2]).all(axis=None)
    assert table["steering"]["factor"].tolist() == [0, 1, 2]
    assert (table["steering"]["examples"] == 8).all()


def test_the_tables_are_what_the_functions_give(done: Path, llava_folder: Folder) -> None:
    model = sg.load(llava_folder / "model")
    asked = sg.image_questions(load_processor(llava_folder / "model"), read_questions(llava_folder / "questions.json"))
    found = pd.read_parquet(done / "answers.parquet")
    np.testing.assert_allclose(found["surprisal"], sg.trace(model, asked).surprisal, atol=1e-5)
    heads = pd.read_parquet(done / "heads.parquet").query("denominator == 'row'")
    traced = sg.trace(model, asked, saliency=False)
    own = sg.find_heads(traced, threshold=0.4)
    for _, row in heads.iterrows():
        assert row["selected"] == pytest.approx(np.mean([(row["layer"], row["head"]) in x for x in own]))
    steered = pd.read_parquet(done / "steering.parquet")
    expected = sg.steering(model, asked.take(range(8)), [0, 2], threshold=0.4, draws=2, batch_size=8)
    pd.testing.assert_frame_equal(steered, expected)


def test_the_summary_names_what_it_should(done: Path) -> None:
    said = recipe.summary(done)
    titles = [
        "Answers, judged as in POPE",
        "Heads with the largest share of flow from the image into the prediction",
        "Are they the same heads in both halves of the pictures?",
        "Surprisal of the right answer (nats) with aggregate heads silenced, and with as many random ones",
        "Is the answer wrong? AUROC of the detectors",
        "How often the answer is right if the heads' outputs are multiplied",
    ]
    places = [said.index(title) for title in titles]
    assert places == sorted(places)
    words = ["hallucinated", "popular", "null_selected", "overlap", "gain_p", "held-out", "max probability", "auroc"]
    for word in [*words, "factor"]:
        assert word in said
    shown = re.findall(r"^ +(\d) +(\d) +([\d.]+) ", said, re.MULTILINE)
    best = pd.read_parquet(done / "heads.parquet").query("denominator == 'row'").sort_values("share", ascending=False)
    assert shown[0] == (str(best["layer"].iloc[0]), str(best["head"].iloc[0]), f"{best['share'].iloc[0]:.3f}")


def test_pictures_are_pngs_that_say_what_was_said(
    done: Path, llava_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Image.open(done / "picture-0000.png") as opened:
        assert opened.format == "PNG"
        assert min(opened.size) > 100
    # One picture is the question's own: what was said is not what is chosen among one answer.
    found = pd.read_parquet(done / "answers.parquet")
    drawn = []
    draw = recipe.draw_patches

    def drawing(picture: Any, heats: Any, titles: Any) -> Any:
        drawn.append((np.asarray(picture), heats[0], titles[0]))
        return draw(picture, heats, titles)

    monkeypatch.setattr(recipe, "draw_patches", drawing)
    wrong = int((found["said"] != found["answer"]).to_numpy().argmax())
    out = tmp_path / "out"
    shutil.copytree(done, out)
    assert run(llava_folder, out, "--pictures", str(wrong + 1)) == 0
    picture, heat, title = drawn[wrong]
    row = found.iloc[wrong]
    assert title == f"{row['text']}\nright: {row['answer']}, said: {row['said']}"
    assert row["answer"] != row["said"]
    assert (picture == np.asarray(Image.open(row["image"]))).all()
    assert heat.shape == picture.shape[:2]
    assert heat.min() >= 0
    assert heat.sum() > 0


def test_a_second_run_does_nothing_anew(
    done: Path, llava_folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_to_load(monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in done.iterdir() if path.suffix in (".parquet", ".png")}
    # How it is run makes no other result.
    assert run(llava_folder, done, "--pictures", "2", "--batch-size", "3", "--checkpoint") == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    printed = capsys.readouterr()
    assert printed.out.strip() == str(done)
    assert "AUROC of the detectors" in printed.err


def test_a_folder_may_be_moved(
    done: Path, llava_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_load(monkeypatch)
    shutil.copytree(done, tmp_path / "elsewhere")
    assert run(llava_folder, tmp_path / "elsewhere") == 0
    shutil.copytree(done, tmp_path / "runs" / "heads")
    monkeypatch.chdir(tmp_path)
    assert main(["heads", str(llava_folder / "model"), "--pairs", str(llava_folder / "questions.json"), *FEW]) == 0


def test_more_pictures_than_questions_are_as_many_as_there_are(
    done: Path, llava_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    for i in range(3, 24):
        shutil.copy(out / "picture-0000.png", out / f"picture-{i:04}.png")
    (out / "picture-0001.png").unlink()
    drawn = list[str]()

    def drawing(picture: Any, heats: Any, titles: list[str]) -> Any:
        drawn.extend(titles)
        return figure_of(1, 1)

    monkeypatch.setattr(recipe, "draw_patches", drawing)
    assert run(llava_folder, out, "--pictures", "1000") == 0
    assert len(drawn) == len(list(out.glob("picture-*.png"))) == 24
    assert not list(out.glob("*.partial"))
    refuse_to_load(monkeypatch)
    assert run(llava_folder, out, "--pictures", "1000") == 0


@pytest.mark.parametrize("broken", ["_heads", "_interventions", "_steering"])
def test_it_goes_on_after_an_interruption(
    done: Path, llava_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Between two parts: what was done stays as it is, and in the end the tables are those of one run."""
    out = tmp_path / "out"

    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        interrupted.__name__ = broken
        patched.setattr(recipe._Study, broken, interrupted)
        assert run(llava_folder, out) == 1
    assert "finished work is kept" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert before
    assert run(llava_folder, out) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for name in TABLES:
        pd.testing.assert_frame_equal(
            pd.read_parquet(out / f"{name}.parquet"), pd.read_parquet(done / f"{name}.parquet")
        )


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
    assert f"out: {done} has results with another {named}; choose another folder" in said


def test_another_model_or_other_questions_are_refused(
    done: Path, llava_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(llava_folder, done, pairs=llava_folder / "others.json", model=llava_folder) == 1
    assert f"out: {done} has results with another model, pairs; choose another" in capsys.readouterr().err
    assert read_json(done / "config.json")["model"] == str(llava_folder / "model")


def test_a_folder_with_other_things_is_refused(
    llava_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert run(llava_folder, tmp_path) == 1
    assert f"out: {tmp_path} has other files; choose another folder" in capsys.readouterr().err
    assert names(tmp_path) == ["notes.txt"]
    # A model's own folder has a config.json too.
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
        ("draws: expected at least 1, got 0", ["--draws", "0"]),
        ("checked: expected at least 1, got -1", ["--checked", "-1"]),
        ("limit: expected at least 1, got 0", ["--limit", "0"]),
        ("pictures: expected at least 0, got -2", ["--pictures", "-2"]),
        ("batch_size: expected at least 1, got 0", ["--batch-size", "0"]),
        ("threshold: expected a share in (0, 1], got 30.0", ["--threshold", "30"]),
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


def test_other_answers_have_no_pope_table(
    llava_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = read_questions(llava_folder / "questions.json")
    named = [Question(question.image, "What is it?", str(question.about)) for question in asked[::3]]
    write_questions(tmp_path / "named.json", named)
    assert run(llava_folder, tmp_path / "out", "--system", "You look.", pairs=tmp_path / "named.json") == 0
    assert names(tmp_path / "out") == sorted(["config.json", *(f"{name}.parquet" for name in TABLES if name != "pope")])
    found = pd.read_parquet(tmp_path / "out" / "answers.parquet")
    assert {*found["said"]} <= {"zebra", "boat", "clock", "umbrella"}
    printed = capsys.readouterr().err
    assert "POPE" not in printed
    assert "How often the answer is right" in printed


def test_where_patches_lie_in_no_grid_pictures_are_refused_first(
    llava_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("symground.data.vision.prompts.patch_maps", lambda *_: ())
    assert run(llava_folder, tmp_path / "out", "--pictures", "1") == 1
    assert "pictures: the position of this model's image tokens in a picture is unknown" in capsys.readouterr().err
    assert names(tmp_path / "out") == ["config.json"]


def test_a_folder_of_a_vision_language_model_is_loaded_attached(llava_folder: Folder) -> None:
    model = sg.load(llava_folder / "model")
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert [mixer.heads for mixer in mixers(model)] == [4, 4]
    assert not model.training
    half = sg.load(llava_folder / "model", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert len(mixers(half)) == 2
    processor = load_processor(llava_folder / "model")
    assert (type(processor).__name__, processor.patch_size) == ("LlavaProcessor", 4)
    with pytest.raises(ValueError, match="device_map: it says where everything is; expected no device beside it"):
        sg.load(llava_folder / "model", device="cpu", device_map="auto")


SHOWN = {
    "1.jpg": ["person", "dog", "car"], "2.jpg": ["person", "dog", "cup"], "3.jpg": ["cat", "bed", "cup"],
    "4.jpg": ["person", "cat", "bed"],
}  # fmt: skip


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    categories = sorted({name for there in SHOWN.values() for name in there} | {"zebra", "boat"})
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(SHOWN)],
        "annotations": [
            {"image_id": i, "category_id": categories.index(name)}
            for i, there in enumerate(SHOWN.values())
            for name in there
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories)],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path / "instances.json"


def test_pope_writes_questions_of_all_strategies(
    instances: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "pope.json"
    assert main(["pope", str(instances), "--out", str(out), "--images", "3", "--per-image", "4"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "36 questions about 3 images" in printed.err
    found = read_questions(out)
    assert [question.kind for question in found] == ["random"] * 12 + ["popular"] * 12 + ["adversarial"] * 12
    for question in found:
        assert (question.about in SHOWN[question.image]) == (question.answer == "yes")
    images = [{q.image for q in found if q.kind == kind} for kind in ("random", "popular", "adversarial")]
    assert images[0] == images[1] == images[2]
    assert main(["pope", str(instances), "--out", str(out), "--images", "None", "--per-image", "2", "--strategy",
                 "popular"]) == 0  # fmt: skip
    assert len(read_questions(out)) == 8


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ("strategy: expected 'random', 'popular', 'adversarial'; got 'likely'", ["--strategy", "likely"]),
        ("per_image: expected an even number, at least 2, got 3", ["--per-image", "3"]),
        ("images: expected 500 of ", []),
    ],
)
def test_pope_refuses_by_name(
    instances: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], message: str, more: list[str]
) -> None:
    assert main(["pope", str(instances), "--out", str(tmp_path / "pope.json"), *more]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pope.json").exists()


def test_what_pope_writes_is_what_heads_reads(llava_folder: Folder, instances: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pope.json"
    assert main(["pope", str(instances), "--out", str(pairs), "--images", "4", "--per-image", "2"]) == 0
    for i, name in enumerate(SHOWN):
        shutil.copy(llava_folder / f"{i}.png", tmp_path / name)
    assert run(llava_folder, tmp_path / "out", "--limit", "16", pairs=pairs) == 0
    assert pd.read_parquet(tmp_path / "out" / "pope.parquet")["kind"].tolist() == ["popular", "random", "all"]
