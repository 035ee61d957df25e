"""The dials of the generated corpus: each of them on tiny corpora, the controls and the tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from symground.analysis.results import read_table
from symground.cli import main
from symground.data import GeneratedSettings
from symground.data.scenes import GeneratedImagesSettings, occurs
from symground.files import read_json
from symground.recipes.dials import IMAGE_VALUES, VALUES, DialsSettings, control_probes, turn_dial
from symground.reports.comparisons.dials import markdown, summary
from symground.training import Optimization

pytestmark = pytest.mark.trains

TINY = DialsSettings(
    models=("lstm-1l",), seeds=1, generated=GeneratedSettings(scenes=1500, nouns=8),
    optimization=Optimization(steps=2, batch_size=2, length=24, checkpoints="0"),
)  # fmt: skip


def rows_of(out: Path) -> pd.DataFrame:
    return pd.DataFrame(json.loads((out / "dial.json").read_text())["rows"])


def test_every_dial_is_one_of_the_corpus_and_has_values() -> None:
    for room, known in (("generated", VALUES), ("images", IMAGE_VALUES)):
        for dial, values in known.items():
            made = replace(TINY, dial=dial, images=GeneratedImagesSettings(size=4)).corpora()
            assert list(made) == list(values)
            assert all(getattr(getattr(settings, room), dial) == value for value, settings in made.items())
            assert len(set(values)) > 1


def test_a_dial_of_images_is_turned_with_interventions(tmp_path: Path) -> None:
    settings = replace(
        TINY, dial="size", values=("2",), models=("gpt2-4l", "lstm-1l"), interventions=True,
        generated=replace(TINY.generated, scenes=1500), optimization=replace(TINY.optimization, length=32),
    )  # fmt: skip
    out = turn_dial(tmp_path / "out", settings)
    rows = rows_of(out)
    assert set(rows["kind"]) == {"grounding", "recall"}
    study = out / "size-2"
    assert read_json(study / "config.json")["images"]["size"] == 2
    recall = control_probes(study)["recall"].matched()
    first = recall.input_ids[:, :16]
    assert (first == first[:1]).all()  # an image of nothing
    assert first.min() >= max(recall.targets) + 1
    silenced = json.loads((out / "dial.json").read_text())["interventions"]
    assert {row["model"] for row in silenced} == {"gpt2-4l"}
    assert {(row["kind"], row["denominator"]) for row in silenced} >= {("gather", "row"), ("aggregate", "matrix")}
    assert "| gpt2-4l | 2 | gather | row |" in (out / "dial.md").read_text()


def test_other_dials_turn_for_images_too() -> None:
    assert replace(TINY, dial="zipf").kind == "generated"
    assert replace(TINY, dial="zipf", scenes="images").kind == "generated-images"
    with pytest.raises(ValueError, match="scenes: expected one of 'words', 'images'; got 'films'"):
        replace(TINY, scenes="films")


@pytest.mark.parametrize("dial", ["cue", "homonyms", "synonyms", "partner", "silent_scenes"])
def test_a_dial_is_turned(dial: str, tmp_path: Path) -> None:
    last = VALUES[dial][-1]
    out = turn_dial(tmp_path / "out", replace(TINY, dial=dial, values=(str(last),)))
    rows = rows_of(out)
    assert set(rows["kind"]) == {"grounding", "recall"}
    assert set(rows[dial]) == {last}
    assert set(rows["step"]) == {0, 2}
    assert (rows["tokens"] == rows["step"] * 48).all()
    study = out / f"{dial}-{last}"
    assert read_json(study / "config.json")["generated"][dial] == last
    recall = control_probes(study)["recall"]
    assert {context.cue for context in recall.contexts} == {"lan"}
    assert f"| lstm-1l | {last} | " in (out / "dial.md").read_text()
    assert (out / "dial.svg").read_text().startswith("<svg")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".safetensors", ".parquet")}
    turn_dial(out, replace(TINY, dial=dial, values=(str(last),)))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_unseen_pairs_are_told_from_those_that_occurred(tmp_path: Path) -> None:
    out = turn_dial(tmp_path / "out", replace(TINY, dial="unseen", values=("0.3",)))
    rows = rows_of(out).set_index(["kind", "step"])
    study = out / "unseen-0.3"
    config, scores = read_json(study / "config.json"), read_table(study, "surprisal")
    scores = scores[scores["step"] == 2]
    settings = GeneratedSettings(**config["generated"])
    unseen = [not occurs(settings, noun, config["contexts"][c][0])
              for c, noun in zip(scores["context"], scores["target"], strict=True)]  # fmt: skip
    part = scores[pd.Series(unseen, index=scores.index)]
    means = part.assign(match=part["env"] == part["target"]).groupby(["target", "match"])["surprisal"].mean().unstack()
    assert rows.loc[("unseen", 2), "gain"] == pytest.approx((means[False] - means[True]).mean(), rel=1e-5)
    assert ("seen", 2) in rows.index


def test_categories_have_probes_of_their_own(tmp_path: Path) -> None:
    settings = replace(TINY, dial="category_talk", values=("0.5",), generated=GeneratedSettings(scenes=2000, nouns=8))
    out = turn_dial(tmp_path / "out", settings)
    assert set(rows_of(out)["kind"]) == {"grounding", "recall", "category"}
    probes = control_probes(out / "category_talk-0.5")["category"]
    assert dict(zip(probes.nouns, probes.spoken, strict=True))["book"] == "toys"
    assert not probes.pairs[probes.nouns.index("book"), probes.nouns.index("ball")]  # both are toys


def test_the_summary_by_hand() -> None:
    base = {"kind": "grounding", "gap": 4, "model": "m", "step": 10, "matched": 1.0}
    gains = pd.DataFrame(
        [{**base, "seed": s, "target": t, "mismatched": 1.0 + g, "gain": g}
         for s, t, g in ((0, "book", 1.0), (0, "ball", 3.0), (1, "book", 2.0), (1, "ball", 4.0))]
    )  # fmt: skip
    r2 = pd.DataFrame({"gap": 4, "model": "m", "step": 10, "seed": [0, 1], "r2": [0.2, 0.4]})
    row = summary(gains, r2, "gap").to_dict("records")[0]
    assert (row["gain"], row["seed_gains"], row["nouns"], row["seeds"]) == (2.5, [2.0, 3.0], 2, 2)
    assert row["r2"] == pytest.approx(0.3)
    text = markdown(summary(gains, r2, "gap").assign(tokens=480), "gap")
    assert "| m | 4 | 10 | 480 | 1.00 | 3.50 | 2.50 | 0.30 |" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dial": "volume"}, "dial: expected one of gap, .*; got 'volume'"),
        ({"dial": "gap", "values": ("many",)}, "values: expected int for gap, got"),
        ({"dial": "unseen", "values": ("0.9",)}, r"unseen: expected a number in \[0, 0.5\]"),
        ({"dial": "gap", "values": ("1", "1")}, "values: expected different ones"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--values", "2", "--models", "lstm-1l", "--seeds", "1", "--generated.scenes", "1500", "--steps", "2"]
    arguments += ["--generated.nouns", "8", "--batch-size", "2", "--length", "24", "--checkpoints", "0"]
    assert main(["dials", "gap", *arguments, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out")
    assert main(["dials", "volume", "--out", str(tmp_path / "x")]) != 0
    assert "dial: expected one of gap" in capsys.readouterr().err
