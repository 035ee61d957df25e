"""Sweeps: each combination is trained and analysed once, in processes; failures are recorded, finished work is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from symground.analysis.results import read_table
from symground.analysis.run import AnalysisSettings
from symground.cli import main
from symground.data import GeneratedSettings
from symground.recipes import sweep as recipe
from symground.recipes.sweep import SweepSettings, run_sweep
from symground.training import Optimization

pytestmark = pytest.mark.trains

TINY = SweepSettings(
    models=("lstm-1l", "gpt2-4l"), seeds=2, dials=("gap=0,2",), generated=GeneratedSettings(scenes=1500, nouns=8),
    optimization=Optimization(steps=3, batch_size=2, length=48, checkpoints="0,1"), checkpoints_per_job=2,
    analysis=AnalysisSettings(draws=2, intervene_contexts=1, spans=(0,), lens_fit=2),
)  # fmt: skip


def jobs_of(out: Path) -> dict[str, str]:
    records = [json.loads(file.read_text()) for file in (out / "jobs").glob("*.json")]
    return {record["job"]: record["status"] for record in records}


def written(out: Path) -> dict[Path, int]:
    kinds = (".safetensors", ".parquet")
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in kinds}


@pytest.mark.slow
def test_every_combination_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_sweep(["generated"], tmp_path / "out", replace(TINY, jobs=2))
    found = jobs_of(out)
    assert set(found.values()) == {"done"}
    assert sum(name.startswith("train") for name in found) == 8
    assert sum(name.startswith("surprisal") for name in found) == 16  # three checkpoints, two to a job
    assert sum(name.startswith(("interventions", "sweep")) for name in found) == 16  # at the last checkpoint
    for gap in (0, 2):
        study = out / f"gap-{gap}"
        gains = read_table(study, "gain")
        assert set(zip(gains["model"], gains["seed"], gains["step"], strict=True)) == {
            (model, seed, step) for model in TINY.models for seed in (0, 1) for step in (0, 1, 3)
        }
        assert set(read_table(study, "interventions")["model"]) == {"gpt2-4l"}
        assert set(read_table(study, "saliency")["step"]) == {0, 1, 3}
        assert (study / "report.html").is_file()
    assert "| gpt2-4l | gap-2 |" in (out / "sweep.md").read_text()
    assert (out / "sweep.svg").read_text().startswith("<svg")
    before = written(out)
    run_sweep(["generated"], tmp_path / "out", TINY)  # in this process now: it makes no difference
    assert written(out) == before


def test_a_training_that_fails_is_told_and_the_others_are_analysed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = recipe._train

    def fails(study: Path, model: str, seed: int, *how: object) -> None:
        if model == "lstm-1l" and seed == 1:
            raise RuntimeError("out of memory")
        own(study, model, seed, *how)  # type: ignore[arg-type]

    settings = replace(TINY, dials=(), analysis=AnalysisSettings(what=("surprisal",)))
    monkeypatch.setattr(recipe, "_train", fails)
    with pytest.raises(
        RuntimeError, match="1 of the jobs failed, the others are done: train corpus, lstm-1l, seed 1: out"
    ):
        run_sweep(["generated"], tmp_path / "out", settings)
    gains = read_table(tmp_path / "out" / "corpus", "gain")
    assert set(zip(gains["model"], gains["seed"], strict=True)) == {("lstm-1l", 0), ("gpt2-4l", 0), ("gpt2-4l", 1)}
    monkeypatch.setattr(recipe, "_train", own)
    run_sweep(["generated"], tmp_path / "out", settings)
    assert (
        len(set(zip(*(read_table(tmp_path / "out" / "corpus", "gain")[k] for k in ("model", "seed")), strict=True)))
        == 4
    )


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        (("gap",), "dials: expected each dial once, as NAME=VALUE,VALUE; got 'gap'"),
        (("gap=1", "gap=2"), "dials: expected each dial once"),
        (("colour=red",), "dial: expected one of gap, .*; got 'colour'"),
        (("gap=wide",), r"values: expected int for gap, got \('wide',\)"),
        (("zipf=0.5,x",), "values: expected float for zipf"),
        (("cue=both",), "cue: expected one of 'env', 'lan'; got 'both'"),
    ],
)
def test_dials_that_do_not_parse_are_refused(dials: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, dials=dials)


def test_every_family_has_its_own_rate(tmp_path: Path) -> None:
    settings = replace(TINY, dials=(), seeds=1, learning_rates={"lstm": 0.5}, analysis=AnalysisSettings(what=()))
    run_sweep(["generated"], tmp_path / "out", settings)
    found = {
        model: json.loads((tmp_path / "out" / "corpus" / model / "seed0" / "config.json").read_text())["settings"]
        for model in TINY.models
    }
    assert {model: config["learning_rate"] for model, config in found.items()} == {"lstm-1l": 0.5, "gpt2-4l": 1e-3}


def test_dials_of_words_and_images_combine() -> None:
    studies = replace(TINY, dials=("gap=0,2", "size=1,4", "nouns=8")).studies()
    assert list(studies) == [f"gap-{gap}_size-{size}_nouns-8" for gap in (0, 2) for size in (1, 4)]
    assert studies["gap-2_size-4_nouns-8"].images.size == 4
    assert studies["gap-2_size-4_nouns-8"].generated.gap == 2


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "childes", "x.cha", "--dials", "gap=0", "--out", str(tmp_path / "out")]) == 1
    assert "dials: only generated corpora have some, got childes x.cha" in capsys.readouterr().err
    assert main(["sweep", "--jobs", "0", "generated"]) != 0
    assert main(["sweep"]) == 2
    assert not (tmp_path / "out").exists()
