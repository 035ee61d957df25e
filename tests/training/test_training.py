"""Training: seeded, resumable, and careful with what is already there."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import symground as sg
from symground.data import Corpus
from symground.folders import checkpoint_folder, checkpoint_steps
from symground.training import TrainSettings, loop, train
from symground.training.sampler import RowSampler
from symground.training.schedule import checkpoint_schedule, learning_rate

TINY = TrainSettings(model="lstm-1l", steps=12, batch_size=4, length=16, checkpoints="0,4,8")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def losses(run: Path) -> list[tuple[int, float]]:
    return [(m["step"], m["loss"]) for m in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]


@pytest.mark.parametrize("model", ["lstm-1l", "gpt2-4l"])
def test_two_runs_of_one_seed_are_alike_to_the_bit(corpus: Corpus, tmp_path: Path, model: str) -> None:
    settings = replace(TINY, model=model)
    for name in ("a", "b"):
        train(corpus, settings, tmp_path / name / "seed0")
    first, second = (checkpoint_folder(tmp_path / name / "seed0", 12) for name in ("a", "b"))
    assert weights(first) == weights(second)
    assert losses(tmp_path / "a" / "seed0") == losses(tmp_path / "b" / "seed0")
    train(corpus, replace(settings, seed=1), tmp_path / "c" / "seed1")
    assert weights(checkpoint_folder(tmp_path / "c" / "seed1", 12)) != weights(first)


@pytest.mark.parametrize("damaged", [False, True])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    settings = replace(TINY, model="gpt2-4l")
    train(corpus, settings, tmp_path / "whole")
    step = loop._step

    def interrupt(*args: object) -> torch.Tensor:
        if args[3] == 10:
            raise KeyboardInterrupt
        return step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, settings, tmp_path / "cut")
    assert checkpoint_steps(tmp_path / "cut") == [0, 4, 8]
    if damaged:
        newest = tmp_path / "cut" / "resume" / "step-00000008.safetensors"
        newest.write_bytes(newest.read_bytes()[:1000])
    monkeypatch.setattr(loop, "_step", step)
    train(corpus, settings, tmp_path / "cut")
    assert weights(checkpoint_folder(tmp_path / "cut", 12)) == weights(checkpoint_folder(tmp_path / "whole", 12))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_finished_run_is_left_and_another_config_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, TINY, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    train(corpus, TINY, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
    with pytest.raises(ValueError, match=r"other settings: length is 16 there, 8 here"):
        train(corpus, replace(TINY, length=8), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["settings"] == asdict(TINY)


def test_a_finished_run_needs_no_resume_state(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, TINY, tmp_path)
    shutil.rmtree(tmp_path / "resume")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    model = train(corpus, TINY, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "resume").exists()
    assert not model.training


def test_checkpoints_load_and_missing_ones_list_those_there_are(corpus: Corpus, tmp_path: Path) -> None:
    trained = train(corpus, TINY, tmp_path)
    ids = torch.from_numpy(np.array(corpus.tokens[None, :8], dtype=np.int64))
    assert torch.equal(sg.load(tmp_path)(ids).logits, trained(ids).logits)
    assert not torch.equal(sg.load(tmp_path, step=4)(ids).logits, trained(ids).logits)
    with pytest.raises(ValueError, match="has checkpoints at 0, 4, 8, 12; got 5"):
        sg.load(tmp_path, step=5)
    damaged = checkpoint_folder(tmp_path, 8) / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:500])
    with pytest.raises(ValueError, match="step-00000008: its weights are damaged or cut short"):
        sg.load(tmp_path, step=8)
    with pytest.raises(ValueError, match="is not a run"):
        sg.load(checkpoint_folder(tmp_path, 4), step=4)


def test_loss_that_is_not_finite_stops_and_names_the_step(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_step", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(ValueError, match="the loss is nan at step 4"):
        train(corpus, TINY, tmp_path)
    assert checkpoint_steps(tmp_path) == [0]


@given(st.integers(1, 5), st.integers(2, 40), st.integers(0, 1000), st.integers(0, 5))
def test_rows_stay_inside_their_document(batch: int, length: int, step: int, seed: int) -> None:
    documents = np.array([0, 7, 20, 50])
    tokens = np.arange(100, 150, dtype=np.int32)
    sampler = RowSampler(tokens, documents, np.array([0, 3, 7, 11, 20, 45]), batch, length, seed, padding=1)
    inputs, targets = sampler.batch(step)
    again = sampler.batch(step)
    assert torch.equal(inputs, again[0])
    assert inputs.shape == targets.shape == (batch, length)
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        start = row[0] - 100
        assert start in (0, 3, 7, 11, 20, 45)
        end = int(documents[np.searchsorted(documents, start, side="right")])
        text = list(range(100 + start, 100 + end))
        assert row == (text + [1] * length)[:length]
        assert target == (text[1:] + [-100] * length)[:length]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("0,1,2,4,…,16,every 10", [0, 1, 2, 4, 8, 10, 16, 20, 25]),
        ("3,...,24", [3, 6, 12, 24, 25]),
        ("0", [0, 25]),
        ("every 100", [25]),
    ],
)
def test_schedule(text: str, steps: list[int]) -> None:
    assert checkpoint_schedule(text, 25) == steps


@pytest.mark.parametrize("text", ["", "one", "every", "every 0", "…,4", "0,…,8", "1,-2"])
def test_a_schedule_that_does_not_parse_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="^checkpoints: "):
        TrainSettings(checkpoints=text)


def test_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    rates = [learning_rate(step, 1.0, 10, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
