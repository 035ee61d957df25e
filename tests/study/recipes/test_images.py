"""Studies whose scenes are images: generated ones, and dialogues with patches of their images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import symground as sg
from symground.analysis.results import read_table
from symground.cli import main
from symground.data import Corpus, DialogSettings, GeneratedSettings
from symground.data.scenes import GeneratedImagesSettings
from symground.data.sequences import IGNORED, ImageSet, RowSampler
from symground.files import read_json, write_json
from symground.recipes import CorpusSettings, prepare
from symground.recipes.study import study_counts, study_images, study_probes
from symground.training import TrainSettings, train

pytestmark = pytest.mark.trains

GENERATED = CorpusSettings(
    generated=GeneratedSettings(scenes=1500, nouns=6), images=GeneratedImagesSettings(grid=3, width=8),
    min_noun_count=20,
)  # fmt: skip
TRAIN = TrainSettings(steps=3, batch_size=4, length=32, checkpoints="0", warmup=1)


def test_generated_scenes(tmp_path: Path) -> None:
    study = tmp_path / "study"
    corpus = prepare(["generated-images"], study, GENERATED)
    assert corpus.images is not None
    assert len(corpus.images) == 1500 + 6 * 10 + 1
    config = read_json(study / "config.json")
    assert config["images"]["grid"] == 3
    assert {context[4] for context in config["contexts"]} == {"image"}
    images = study_images(study)
    assert images is not None
    assert set(images.of) == set(config["nouns"])
    assert all(len(shown.patches) == 1 for of_noun in images.of.values() for shown in of_noun)
    asked = study_probes(study)
    assert len(asked.contexts) == len(config["contexts"])
    words = len(corpus.tokenizer)
    assert (asked.matched().input_ids[:, :9] >= words + 1500 * 9).all()  # images that no scene had
    counts = study_counts(study, asked, 128)
    own = counts[counts["env"] == counts["lan"]]
    assert own["count"].min() > 0
    assert own["env_count"].tolist() == [len(corpus.shown[noun]) for noun in asked.nouns]
    page = (study / "corpus.html").read_text()
    assert f"<td>{own['env_count'].iloc[0]}</td>" in page
    assert "13,500 patches of 1,500 images" in page
    assert "<td>clutter</td>" in page
    # The same settings load the study; another dial is another study.
    before = (study / "images" / "features.npy").stat().st_mtime_ns
    prepare(["generated-images"], study, GENERATED)
    assert (study / "images" / "features.npy").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds another study: images is"):
        prepare(["generated-images"], study, replace(GENERATED, images=GeneratedImagesSettings(grid=3, noise=2.0)))


def test_a_study_that_could_not_be_made_leaves_no_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nouns: expected two that occur at least 9999999 times"):
        prepare(["generated-images"], tmp_path / "study", replace(GENERATED, min_noun_count=9_999_999))
    assert not (tmp_path / "study").exists()
    assert prepare(["generated-images"], tmp_path / "study", GENERATED).images is not None


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        prepare(["generated-images"], tmp_path / "study", GENERATED)
    assert not (tmp_path / "study").exists()


def test_rows_begin_with_the_image_and_words_are_what_is_learnt(tmp_path: Path) -> None:
    corpus = prepare(["generated-images"], tmp_path / "study", GENERATED)
    words = len(corpus.tokenizer)
    # Give every document a second place at which a row may begin.
    starts = np.sort(np.concatenate([corpus.starts, corpus.starts + 4]))
    sampler = RowSampler(corpus.tokens, corpus.documents, starts, 64, 16, 0, 1, corpus.prefix)
    inputs, targets = sampler.batch(0)
    begins = []
    for row, wanted in zip(inputs, targets, strict=True):
        assert (row[:9] - row[0]).tolist() == list(range(9))
        (document,) = np.flatnonzero(corpus.tokens[corpus.documents[:-1]] == int(row[0]))
        text = corpus.tokens[corpus.documents[document] + 9 : corpus.documents[document + 1]].tolist()
        of_begin = {begin: text[begin : begin + 8] for begin in (0, 4)}
        # The last patch predicts the first word; a patch is never a target.
        (begin,) = {b for b, some in of_begin.items() if wanted[8:].tolist() == (some + [IGNORED] * 8)[:8]}
        assert wanted[:8].tolist() == [IGNORED] * 8
        assert row[9:].tolist() == (of_begin[begin] + [1] * 8)[:7]
        assert (row[9:] < words).all()
        begins.append(begin)
    assert set(begins) == {0, 4}


def test_training_and_loading(tmp_path: Path) -> None:
    study = tmp_path / "study"
    corpus = prepare(["generated-images"], study, GENERATED)
    run = study / "gpt2-4l" / "seed0"
    trained = train(corpus, TRAIN, run)
    loaded = sg.load(run)
    asked = study_probes(study)
    scores = sg.score(loaded, asked)
    assert np.array_equal(scores["surprisal"], sg.score(trained, asked)["surprisal"])
    assert np.isfinite(scores["surprisal"]).all()
    # A moved study has its images with it; without them the model is refused.
    moved = tmp_path / "elsewhere"
    shutil.move(study, moved)
    assert np.array_equal(sg.score(sg.load(moved / "gpt2-4l/seed0"), asked)["surprisal"], scores["surprisal"])
    shutil.rmtree(moved / "images")
    with pytest.raises(FileNotFoundError, match="the images of its study are gone from .*images"):
        sg.load(moved / "gpt2-4l/seed0")
    with pytest.raises(FileNotFoundError, match="is not an image set"):
        Corpus.load(moved / "data", moved)
    with pytest.raises(ValueError, match="length: expected at least 11 tokens per row, .* got 10"):
        train(corpus, replace(TRAIN, length=10), moved / "gpt2-4l" / "seed1")


def test_curves_grow_while_training_runs(tmp_path: Path) -> None:
    study = tmp_path / "study"
    prepare(["generated-images"], study, GENERATED)
    arguments = ["train", str(study), "--model", "gpt2-4l", "--steps", "4", "--batch-size", "2", "--length", "48"]
    assert main([*arguments, "--checkpoints", "0,2", "--warmup", "1", "--score", "--device", "cpu"]) == 0
    assert set(read_table(study, "gain")["step"]) == {0, 2, 4}
    before = read_table(study, "surprisal")
    assert main([*arguments, "--checkpoints", "0,2", "--warmup", "1", "--score", "--device", "cpu"]) == 0
    assert read_table(study, "surprisal").equals(before)


def test_other_images_are_another_run(tmp_path: Path) -> None:
    corpus = prepare(["generated-images"], tmp_path / "study", GENERATED)
    train(corpus, TRAIN, tmp_path / "study" / "gpt2-4l" / "seed0")
    assert corpus.images is not None
    other = replace(corpus, images=replace(corpus.images, description={"model": "another"}))
    with pytest.raises(ValueError, match="has a run with other settings: corpus images is"):
        train(other, TRAIN, tmp_path / "study" / "gpt2-4l" / "seed0")


def test_every_analysis_of_a_study(tmp_path: Path) -> None:
    study = str(tmp_path / "study")
    arguments = ["run", "generated-images", "--out", study, "--steps", "2", "--batch-size", "2", "--length", "48"]
    arguments += ["--generated.scenes", "1500", "--generated.nouns", "6", "--images.grid", "3", "--checkpoints", "0"]
    arguments += ["--models", "gpt2-4l", "mamba2-4l", "lstm-1l", "--draws", "2", "--intervene-contexts", "1"]
    arguments += ["--lens-fit", "2"]
    assert main([*arguments, "--threads", "1"]) == 0
    for name in ("surprisal", "gain", "r2"):
        assert set(read_table(study, name)["model"]) == {"gpt2-4l", "mamba2-4l", "lstm-1l"}
    for name in ("saliency", "heads", "interventions", "sweep"):
        assert set(read_table(study, name)["model"]) == {"gpt2-4l", "mamba2-4l"}
    assert set(read_table(study, "saliency")["region"]) == {"env", "event", "other"}
    assert "<svg" in (tmp_path / "study" / "report.html").read_text()


# Dialogues.

TURNS = ["what color is the book? brown", "is the ball big? no", "how big is the dog? very", "is the dog near? yes"]
TURNS += ["can you see the whole book? no", "what is on the ball? a dog"]


@pytest.fixture
def image_set(tmp_path: Path) -> Path:
    folder = tmp_path / "features"
    folder.mkdir()
    np.save(folder / "features.npy", np.random.default_rng(0).standard_normal((12, 4, 8)).astype(np.float16))
    (folder / "images.txt").write_text("".join(f"COCO_val2014_{i:012}.jpg\n" for i in range(12)))
    write_json(folder / "images.json", {"model": "tiny"})
    return folder


@pytest.fixture
def visdial(tmp_path: Path) -> Path:
    """24 dialogues on 12 images, half of them of a ball alone; and two on an image that is not there."""
    entries: list[dict[str, Any]] = []
    for i in range(26):
        noun = "ball" if i % 2 else "book and a dog"
        image = f"val/VisDial_{i % 12 if i < 24 else 99:06}.jpg"
        entries.append({"img": image, "dialog": [f"A {noun} in a room", *TURNS]})
    path = tmp_path / "dialogues.json"
    path.write_text(json.dumps(entries))
    return path


def test_dialogues_with_images(visdial: Path, image_set: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    settings = CorpusSettings(
        visdial=DialogSettings(images=str(image_set)), min_noun_count=5, min_word_count=1, validation=0.3
    )
    corpus = prepare(["visdial", str(visdial)], study, settings)
    words = len(corpus.tokenizer)
    assert corpus.statistics["visdial"]["dialogues_without_image"] == 2
    assert corpus.statistics["documents"] == 24
    for begin, end in zip(corpus.documents[:-1], corpus.documents[1:], strict=True):
        first = int(corpus.tokens[begin])
        assert (first - words) % 4 == 0
        assert corpus.tokens[begin : begin + 4].tolist() == [first + p for p in range(4)]
        text = corpus.tokenizer.decode(corpus.tokens[begin + 4 : end])
        assert text.startswith("<QUE> what:<LAN> color:<LAN>")
        assert "<ENV>" not in text
        assert "<CAP>" not in text
    assert len(corpus.starts) == 24 * len(TURNS)  # rows may begin at any turn, after the image
    # The caption names the objects of its image.
    assert set(corpus.shown["ball"]) == {1, 3, 5, 7, 9, 11}
    assert set(corpus.shown["book"]) == set(corpus.shown["dog"]) == {0, 2, 4, 6, 8, 10}
    config = read_json(study / "config.json")
    assert set(config["nouns"]) == {"ball", "book", "dog"}
    asked = study_probes(study)
    nouns = list(asked.nouns)
    book, dog, ball = (nouns.index(noun) for noun in ("book", "dog", "ball"))
    # Every image of a book also shows a dog, so neither is a mismatch of the other.
    assert not asked.pairs[book, dog]
    assert not asked.pairs[dog, book]
    assert asked.pairs[ball, dog]
    # Images that are held out from training come first.
    images = study_images(study)
    assert images is not None
    held = corpus.part("validation").tokens
    kept = {int(i - words) // 4 for i in held if i >= words}
    assert kept
    for noun, of_noun in images.of.items():
        order = [shown.image in kept for shown in of_noun]
        assert order == sorted(order, reverse=True), noun
    trained = train(corpus.part("train"), TRAIN, study / "gpt2-4l" / "seed0")
    assert torch.isfinite(torch.tensor(sg.score(trained, asked)["surprisal"].to_numpy())).all()
    assert len(sg.score(sg.load(study / "gpt2-4l" / "seed0"), asked)) == len(asked.contexts) * 7


def test_dialogues_whose_images_are_elsewhere_are_refused(visdial: Path, image_set: Path, tmp_path: Path) -> None:
    (image_set / "images.txt").write_text("".join(f"{i + 500}.jpg\n" for i in range(12)))
    settings = CorpusSettings(visdial=DialogSettings(images=str(image_set)), min_noun_count=5, min_word_count=1)
    with pytest.raises(ValueError, match="images: .*features has no image of these dialogues"):
        prepare(["visdial", str(visdial)], tmp_path / "study", settings)
    with pytest.raises(FileNotFoundError, match="nowhere is not an image set"):
        prepare(
            ["visdial", str(visdial)], tmp_path / "study",
            replace(settings, visdial=DialogSettings(images=str(tmp_path / "nowhere"))),
        )  # fmt: skip
    assert not (tmp_path / "study").exists()
    assert ImageSet.load(image_set).names[0] == "500.jpg"
