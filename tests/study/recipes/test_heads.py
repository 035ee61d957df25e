"""``symground heads`` and ``symground pope``, end to end on a tiny LLaVA, and their answers to bad input."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import symground as sg
from symground.cli import main
from symground.data import Question, read_questions, write_questions
from symground.models import load_processor, mixers
from symground.recipes import heads as recipe
from symground.reports.figures import figure_of
from tests.study.recipes.heads_command import FEW, TABLES, Folder, names, run


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
    # Each picture is that of its question, with the model's choice among all answers.
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
    # Settings of the machine do not change the results, so they are not compared.
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
    """After an interruption between two parts, finished tables are kept, and in the end all are those of one run."""
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
    with pytest.raises(ValueError, match="device: device_map already places the weights; expected no device, got cpu"):
        sg.load(llava_folder / "model", device="cpu", device_map="auto")
