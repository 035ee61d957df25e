"""The testbeds of the study: from a corpus to tables beside the published figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from symground.cli import main
from symground.data import DialogSettings
from symground.data.scenes import GeneratedImagesSettings
from symground.data.visdial import stand_in_images
from symground.files import read_json
from symground.recipes import paper
from symground.recipes.paper import PaperSettings, run_paper, sweep_settings
from symground.recipes.sweep import SweepSettings
from symground.reports.comparisons.paper import MIDDLE, markdown, tables
from symground.reports.sections.parts import StudyResults

pytestmark = pytest.mark.trains

NOUNS = ("book", "ball", "dog")
HEADER = "@UTF8\n@Begin\n@Participants:\tCHI Target_Child, MOT Mother\n"


def transcript(noun: str) -> str:
    turn = f"*MOT:\tlook at the {noun} .\n%act:\ttakes {noun} from MOT\n"
    turn += f"*CHI:\there is your {noun} .\n%act:\tMOT hands CHI {noun}\n*CHI:\tcan you find the {noun} .\n"
    return f"{HEADER}{turn * 120}@End\n"


@pytest.fixture
def transcripts(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for noun in NOUNS:
        (folder / f"{noun}.cha").write_text(transcript(noun), encoding="utf-8")
    return folder


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    def dialogue(i: int) -> dict[str, object]:
        noun = ("cat", "train", "dog")[i % 3]
        turns = [
            f"what color is the {noun} ? white",
            f"can you see the whole {noun} ? yes",
            f"how big is the {noun} ? big",
        ]
        return {"img": f"images/{i:012d}.jpg", "dialog": [f"a {noun} on a wooden table", *turns]}

    path = tmp_path / "dialogues.json"
    path.write_text(json.dumps([dialogue(i) for i in range(90)]), encoding="utf-8")
    return path


TINY = PaperSettings(scale="cpu", models=("gpt2-4l", "lstm-1l"), seeds=2, steps=4)
LEAST = replace(TINY, models=("gpt2-4l",), seeds=1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few draws of random heads and a lens of two steps, since these tests do not check the accuracy of the numbers."""

    def settings(recipe: str, asked: PaperSettings) -> SweepSettings:
        whole = sweep_settings(recipe, asked)
        return replace(whole, analysis=replace(whole.analysis, draws=4, lens_fit=2))

    monkeypatch.setattr(paper, "sweep_settings", settings)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_transcripts_to_the_studys_results(transcripts: Path, tmp_path: Path) -> None:
    page = run_paper(["paper-childes", str(transcripts)], tmp_path / "out", TINY)
    study = tmp_path / "out"
    assert page == study / "report.html"
    content = read_json(study / "paper.json")
    assert {row["model"] for row in content["curves"]} == set(TINY.models)
    assert {row["step"] for row in content["interventions"]} == {1, 2, 4}
    assert {row["step"] for row in content["layers"]} == {1, 2, 4}  # saliency where the table stands
    assert 0 in {row["step"] for row in content["curves"]}
    assert {row["model"] for row in content["interventions"]} == {"gpt2-4l"}  # an LSTM has no heads
    assert {row["seeds"] for row in content["interventions"]} == {2}
    assert content["sizes"].keys() == set(TINY.models)
    assert content["versions"]["torch"] == torch.__version__
    text = (study / "paper.md").read_text(encoding="utf-8")
    assert "| *the study, GPT-2 of 12 layers* | 20,000 | ? | 6.71 | 7.52 | 0.58 | 5.62*** | 4.76 | 4.77 |" in text
    assert "| gpt2-4l | 4 | row |" in text
    for name in ("curves", "r2", "layers"):
        assert (study / f"paper-{name}.svg").read_text(encoding="utf-8").startswith("<svg")
    # A second call repeats nothing, and all files are in the study's folder.
    before = {p: p.stat().st_mtime_ns for p in study.rglob("*.safetensors")}
    assert before
    run_paper(["paper-childes", str(transcripts)], study, TINY)
    assert {p: p.stat().st_mtime_ns for p in study.rglob("*.safetensors")} == before


@pytest.mark.usefixtures("quick")
def test_no_word_of_the_corpus_but_its_nouns(transcripts: Path, tmp_path: Path) -> None:
    (transcripts / "more.cha").write_text(transcript("book").replace("look at", "gloopy"), encoding="utf-8")
    run_paper(["paper-childes", str(transcripts)], tmp_path / "out", LEAST)
    written = [p.read_text(encoding="utf-8") for p in (tmp_path / "out").glob("paper*")]
    assert len(written) == 5
    assert not any("gloopy" in text or "more.cha" in text or str(tmp_path) in text for text in written)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("recipe", ["paper-captions", "paper-images"])
def test_dialogues(dialogues: Path, tmp_path: Path, recipe: str) -> None:
    run_paper([recipe, str(dialogues)], tmp_path / "out", LEAST)
    config = read_json(tmp_path / "out" / "config.json")
    assert set(config["nouns"]) == {"cat", "train", "dog"}
    assert {context[4] for context in config["contexts"]} == {"image" if recipe == "paper-images" else "env"}
    content = read_json(tmp_path / "out" / "paper.json")
    assert str(tmp_path) not in json.dumps(content)
    text = (tmp_path / "out" / "paper.md").read_text(encoding="utf-8")
    of_scene = "of them patches of images;" if recipe == "paper-images" else "of them ENV;"
    assert of_scene in text
    assert " 0% of them" not in text
    assert ("Scenes are 90 images of 16 patches each, stand-ins" in text) == (recipe == "paper-images")
    assert {row["model"] for row in content["layers"]} == {"gpt2-4l"}
    assert sum(row["share"] for row in content["layers"] if row["step"] == 4) == pytest.approx(1)


def test_stand_ins_show_the_nouns_of_the_caption(dialogues: Path, tmp_path: Path) -> None:
    settings = GeneratedImagesSettings(grid=3, width=16, noise=0.0, clutter=0.0)
    made = stand_in_images([dialogues], tmp_path / "images", ["cat", "train", "table"], DialogSettings(), settings)
    assert made.features.shape == (90, 9, 16)
    assert list(made.numbers()) == [str(i) for i in range(90)]
    shown = [{tuple(patch) for patch in image if patch.any()} for image in made.features]
    cat, train, dog = shown[0], shown[1], shown[2]
    assert (len(cat), len(train), len(dog)) == (2, 2, 1)  # each caption names a table too, and none a thing called dog
    assert cat & train == dog
    assert shown[3] == cat
    again = stand_in_images([dialogues], tmp_path / "images", ["dog"], DialogSettings(), settings)
    assert (again.features == made.features).all()  # what is there is loaded


def test_stand_ins_of_nothing_are_refused(dialogues: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nouns: expected at least one to show, got none"):
        stand_in_images([dialogues], tmp_path / "x", [], DialogSettings(), GeneratedImagesSettings())
    nameless = tmp_path / "nameless.json"
    nameless.write_text(json.dumps([{"dialog": ["a cat", "is it big ? yes"]}]))
    with pytest.raises(ValueError, match="no dialogue that names its image"):
        stand_in_images([nameless], tmp_path / "x", ["cat"], DialogSettings(), GeneratedImagesSettings())
    assert not (tmp_path / "x").exists()


def test_the_studys_sizes() -> None:
    whole = sweep_settings("paper-childes", PaperSettings(scale="study"))
    assert (whole.seeds, len(whole.models)) == (5, 6)
    assert all(model.endswith("-768") for model in whole.models)
    how = whole.optimization
    assert (how.steps, how.batch_size, how.length, how.learning_rate, how.warmup) == (20_000, 8, 512, 5e-5, 1000)
    assert (how.decay, how.clip) == ("linear", 1.0)
    assert whole.analysis.intervene_steps == (5_000, 10_000, 20_000)
    small = sweep_settings("paper-childes", PaperSettings(scale="cpu", seeds=3, steps=100))
    assert (small.seeds, small.optimization.steps, small.analysis.intervene_steps) == (3, 100, (25, 50, 100))


def test_bad_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, said in (
        (["paper-childes", "x.cha"], "scale: the study's sizes need a GPU"),
        (["paper-childes", "x.cha", "--scale", "tiny"], "scale: expected one of 'study', 'cpu'; got 'tiny'"),
        (["paper-childes", "x.cha", "--scale", "cpu", "--models", "gpt5"], "models: expected one of 'gpt2-4l'"),
        (
            ["paper-childes", "x.cha", "--scale", "cpu", "--steps", "2"],
            "steps: expected an integer of at least 4, got 2",
        ),
        (["paper-childes", "--scale", "cpu"], "corpus: expected paths after 'paper-childes', got none"),
        (["paper-childes", str(tmp_path / "none.cha"), "--scale", "cpu"], "none.cha does not exist"),
    ):
        assert main(["run", *arguments, "--out", str(tmp_path / "out")]) != 0
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="recipe: expected one of 'paper-childes', .*; got 'paper-films'"):
        sweep_settings("paper-films", PaperSettings(scale="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert sweep_settings("paper-childes", PaperSettings()).models[0] == "gpt2-4l-768"


def test_what_agrees_is_judged_by_its_numbers() -> None:
    """Three made-up results: one has all findings of the study, one only its gain, and one has no gain."""

    class Results(dict[str, pd.DataFrame]):
        def at(self, name: str, steps: list[int]) -> pd.DataFrame:
            return self[name]

    def made(gains: list[float], link: bool, end: float = 0.2) -> dict[str, bool | None]:
        steps = [10, 20, 30]
        gain = pd.DataFrame(
            [
                {"model": "gpt2-4l", "seed": 0, "step": step, "target": noun, "matched": 6 - gain + jitter,
                 "mismatched": 6.0, "gain": gain - jitter}
                for step, gain in zip(steps, gains, strict=True)
                for noun, jitter in zip("abcdefgh", (-0.2, -0.15, -0.1, -0.05, 0.05, 0.1, 0.15, 0.2), strict=True)
            ]
        )  # fmt: skip
        r2 = pd.DataFrame(
            [
                {"model": "gpt2-4l", "seed": 0, "step": step, "r2": value, "r2_low": 0.0, "r2_high": 1.0, "slope": 1.0,
                 "partial_r2": 0.1, "mean_gain": 1.0, "nouns": 8}
                for step, value in zip(steps, [0.3, 0.6, end] if link else [0.2, 0.3, 0.6], strict=True)
            ]
        )  # fmt: skip
        where = [0.1, 0.1, 1.0, 0.1] if link else [1.0, 0.1, 0.0, 0.0]
        saliency = pd.DataFrame(
            [
                {"model": "gpt2-4l", "seed": 0, "step": 30, "layer": layer, "region": "env", "value": value,
                 "examples": 2}
                for layer, value in enumerate(where)
            ]
        )  # fmt: skip
        heads = pd.DataFrame(
            [{"model": "gpt2-4l", "seed": 0, "step": 30, "example": i, "kind": "aggregate", "denominator": "row",
              "layer": 2, "head": 0, "share": 0.5} for i in range(2)]
        )  # fmt: skip
        interventions = pd.DataFrame(
            [
                {"model": "gpt2-4l", "seed": 0, "step": step, "kind": "aggregate", "denominator": "row", "span": 0,
                 "heads_per_example": count, "mean_layer": 2.0 if link else 0.0, "original": 4.0,
                 "intervened": 6.0 if link else 4.0, "control": 4.1, "control_sd": 0.1, "p": 1e-9 if link else 0.9,
                 "examples": 2, "draws": 100, "short": 0}
                for step, count in ((10, 1.0), (30, 2.0 if link else 0.5))
            ]
        )  # fmt: skip
        study = StudyResults(
            Path("x"), "x", {},
            Results(gain=gain, r2=r2, saliency=saliency, heads=heads, interventions=interventions),  # type: ignore[arg-type]
            "x",
        )  # fmt: skip
        found = tables(study, ["gpt2-4l"], {"gpt2-4l": 4})
        about = {
            "recipe": "x", "corpus": {"tokens": 10, "env_tokens": 5, "vocabulary": 3}, "nouns": 8, "contexts": 1,
            "tokens_per_step": 8, "steps": 30, "summary": ["a line"], "sizes": {"gpt2-4l": 7},
        }  # fmt: skip
        agrees, text = found["findings"]["agrees"].tolist(), markdown(found, about)
        for said, value in (("| agrees |", True), ("**does not**", False), ("no gain to judge it by", None)):
            assert text.count(said) == agrees.count(value)
        return dict(zip(found["findings"]["finding"], agrees, strict=True))

    assert MIDDLE[0] <= (3 - 0.5) / 4 <= MIDDLE[1]  # the third of four layers is a middle one
    assert list(made([0.5, 2.0, 4.0], link=True).values()) == [True] * 6
    assert list(made([0.5, 2.0, 4.0], link=False).values()) == [True] + [False] * 5
    rises = "R² on co-occurrence rises early, then falls while the gain grows"
    for end, fell in ((0.58, False), (0.56, False), (0.54, True)):
        judged = made([0.5, 2.0, 4.0], link=True, end=end)
        assert judged.pop(rises) is fell
        assert list(judged.values()) == [True] * 5
    without = made([0.0, 0.0, 0.0], link=False)
    assert list(without.values()) == [False] + [None] * 4
    assert rises not in without  # masked: there is no gain
