"""The comparison of architectures: the recipe on tiny corpora, its statistics by hand, and bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from symground.cli import main
from symground.data import GeneratedSettings
from symground.recipes import compare
from symground.recipes.architectures import ArchitecturesSettings, compare_architectures
from symground.reports.comparisons.architectures import learnt_at, markdown, over_training
from symground.training import Optimization

pytestmark = pytest.mark.trains

TINY = ArchitecturesSettings(
    models=("gpt2-4l", "lstm-4l"), gaps=(0, 2), seeds=2, generated=GeneratedSettings(scenes=600, nouns=4),
    optimization=Optimization(steps=4, batch_size=4, length=24, checkpoints="0,2"),
)  # fmt: skip
ARGUMENTS = [
    "--models", "gpt2-4l", "lstm-4l", "--gaps", "0", "2", "--seeds", "2", "--generated.scenes", "600",
    "--generated.nouns", "4", "--steps", "4", "--batch-size", "4", "--length", "24", "--checkpoints", "0,2",
]  # fmt: skip
WRITTEN = ("architectures.json", "architectures.md", "architectures.svg")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compare_architectures(tmp_path_factory.mktemp("runs") / "compared", TINY)


def test_every_run_is_in_the_tables(compared: Path) -> None:
    content = json.loads((compared / "architectures.json").read_text())
    rows = pd.DataFrame(content["rows"])
    assert len(rows) == 2 * 2 * 3
    assert set(zip(rows["gap"], rows["model"], rows["step"], strict=True)) == {
        (gap, model, step) for gap in (0, 2) for model in ("gpt2-4l", "lstm-4l") for step in (0, 2, 4)
    }
    assert (rows["tokens"] == rows["step"] * 4 * 24).all()
    assert set(rows["seeds"]) == {2}
    assert set(rows["nouns"]) == {4}
    np.testing.assert_allclose(rows["mismatched"] - rows["matched"], rows["gain"], atol=1e-6)
    assert content["checkpoints"]["gap-2/lstm-4l/seed1"] == [0, 2, 4]
    assert content["settings"]["gaps"] == [0, 2]
    assert content["distance"]["2"] > content["distance"]["0"] >= 4
    for gap in (0, 2):
        config = json.loads((compared / f"gap-{gap}" / "config.json").read_text())
        assert config["generated"]["gap"] == gap
        assert all(len(context[2]) == gap for context in config["contexts"])
        of_lstm = json.loads((compared / f"gap-{gap}" / "lstm-4l" / "seed1" / "config.json").read_text())
        assert of_lstm["settings"]["learning_rate"] == 3e-3
    assert "| gpt2-4l |" in (compared / "architectures.md").read_text()
    assert (compared / "architectures.svg").read_text().lstrip().startswith("<")


def test_a_run_that_is_missing_is_made_and_the_others_are_left(compared: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    shutil.copytree(compared, out)
    shutil.rmtree(out / "gap-2" / "lstm-4l" / "seed1")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert main(["architectures", "--out", str(out), *ARGUMENTS, "--jobs", "2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for name in WRITTEN[1:]:
        assert (out / name).read_bytes() == (compared / name).read_bytes()
    first, again = (json.loads((folder / WRITTEN[0]).read_text()) for folder in (compared, out))
    assert again.pop("settings") == {**first.pop("settings"), "jobs": 2}
    assert again == first


def test_one_runs_failure_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = compare.train_study

    def failing(study: Path, models: list[str], seeds: list[int], *rest: Any) -> None:
        if (study.name, models, seeds) == ("gap-0", ["lstm-4l"], [0]):
            raise OSError("No space left on device")
        train(study, models, seeds, *rest)

    monkeypatch.setattr(compare, "train_study", failing)
    out = tmp_path / "compared"
    with pytest.raises(RuntimeError, match="1 of the runs failed, the others are done: gap 0, lstm-4l, seed 0: No sp"):
        compare_architectures(out, replace(TINY, gaps=(0,)))
    rows = pd.DataFrame(json.loads((out / "architectures.json").read_text())["rows"])
    assert dict(zip(rows["model"], rows["seeds"], strict=True)) == {"gpt2-4l": 2, "lstm-4l": 1}


def test_statistics_by_hand() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"gap": 0, "model": "m", "seed": seed, "step": step, "target": noun, "matched": 3.0, "mismatched": 3.0 + gain}
        for seed in (0, 1)
        for step in (0, 10)
        for noun in ("book", "ball", "box")
        for gain in rng.normal(step / 5, 0.1, 1)
    ]
    gains = pd.DataFrame(rows).assign(gain=lambda t: t["mismatched"] - t["matched"])
    table = over_training(gains, "gap").set_index("step")
    late = gains[gains["step"] == 10]
    of_nouns = late.groupby("target")["gain"].mean()
    assert table.loc[10, "gain"] == pytest.approx(of_nouns.mean())
    assert table.loc[10, "p"] == pytest.approx(stats.ttest_1samp(of_nouns, 0).pvalue)
    assert table.loc[10, "p_holm"] == pytest.approx(min(2 * table["p"].min(), 1))
    of_seeds = late.groupby("seed")["gain"].mean()
    assert table.loc[10, "seed_gains"] == pytest.approx(of_seeds.tolist())
    assert table.loc[10, "p_seeds"] == pytest.approx(stats.ttest_1samp(of_seeds, 0).pvalue)
    assert table.loc[10, "gain_low"] < table.loc[10, "gain"] < table.loc[10, "gain_high"]
    assert np.isnan(over_training(gains[gains["seed"] == 0], "gap")["p_seeds"]).all()


def test_when_a_link_counts_as_learnt() -> None:
    def table(*of_seeds: list[float]) -> pd.DataFrame:
        steps = range(0, 10 * len(of_seeds), 10)
        frame = {"gap": 0, "model": "m", "step": steps, "tokens": steps, "seed_gains": of_seeds, "seeds": 2, "nouns": 3}
        numbers = dict.fromkeys(("matched", "mismatched", "gain", "gain_low", "gain_high", "p_holm"), 2.0)
        return pd.DataFrame({**frame, **numbers})

    for of_seeds, step, cell in (
        ([[0.0, 0.0], [1.5, 2.0], [1.5, 0.9], [3.0, 2.0]], 30, "step 30"),
        ([[1.5, 2.0], [3.0, 2.0]], 0, "step 0"),
        ([[0.0, 0.0], [3.0, 1.0]], None, "1 of 2 seeds"),
        ([[3.0, 3.0], [1.0, 0.9]], None, "never"),
    ):
        training = table(*of_seeds)
        assert learnt_at(training, 0, "m") == step
        assert f"| m | 1,234 | 2.00 [2.00, 2.00], {cell} |" in markdown(training, {"m": 1234}, {0: 5.2})


def test_models_of_different_sizes_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    settings = ArchitecturesSettings(models=("gpt2-4l", "lstm-1l"), gaps=(0,), generated=TINY.generated)
    with pytest.raises(ValueError, match=r"within 10% of the smallest \(--tolerance\), got gpt2-4l 8\d\d,\d{3}, "):
        compare_architectures(tmp_path / "out", settings)
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ("gpt5",)}, "models: expected one of 'gpt2-4l', .*; got 'gpt5'"),
        ({"models": ()}, "models: expected at least one of"),
        ({"gaps": (0, 0)}, r"gaps: expected different numbers of at least 0, got \(0, 0\)"),
        ({"gaps": (-1,)}, "gaps: expected different numbers"),
        ({"seeds": 0}, "seeds: expected an integer of at least 1, got 0"),
        ({"jobs": 0}, "jobs: expected an integer of at least 1, got 0"),
        ({"tolerance": -0.1}, r"tolerance: expected a number in \[0, inf\], got -0.1"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArchitecturesSettings(**changes)


def test_another_comparison_in_the_folder_is_refused(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in compared.rglob("*.json")}
    assert main(["architectures", "--out", str(compared), *ARGUMENTS, "--generated.seed", "7"]) != 0
    assert "holds another study" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in compared.rglob("*.json")} == before


def test_a_study_older_than_a_dial_goes_on(compared: Path, tmp_path: Path) -> None:
    out = tmp_path / "older"
    shutil.copytree(compared / "gap-0", out)
    config = json.loads((out / "config.json").read_text())
    del config["generated"]["unsupported"]
    (out / "config.json").write_text(json.dumps(config))
    command = ["data", "generated", "--out", str(out), "--generated.scenes", "600", "--generated.nouns", "4"]
    assert main([*command, "--generated.gap", "0"]) == 0
    assert main([*command, "--generated.gap", "0", "--generated.unsupported", "0.5"]) != 0
