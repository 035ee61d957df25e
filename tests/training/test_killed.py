"""Processes that are killed, stopped by a signal, or fill the disk: nothing is lost, and the results are the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from symground.files import checkpoint_folder, checkpoint_steps, damage, sealed
from symground.recipes import train_study
from symground.training import Hardware, Optimization
from symground.training.checkpoints import resume_folders

pytestmark = pytest.mark.trains

SETTINGS = Optimization(steps=24, batch_size=2, length=12, warmup=2, checkpoints="0,every 3")
#: A resume state after every step, so that a file is being written most of the time.
OFTEN = Hardware(resume_every=0, device="cpu")


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["symground.recipes", "transformers.models.gpt2.modeling_gpt2"])
    return context


def start(processes: ForkServerContext, study: Path, model: str = "lstm-1l") -> ForkServerProcess:
    process = processes.Process(target=train_study, args=(study, [model], [0], SETTINGS, OFTEN))
    process.start()
    return process


def told(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if "second" not in name} for line in lines]


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "checkpoints").rglob("*.*"))}


def until(condition: Any, process: ForkServerProcess) -> None:
    end = time.monotonic() + 60
    while not condition() and process.is_alive() and time.monotonic() < end:
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(
    processes: ForkServerContext, study: Path, tmp_path: Path
) -> None:
    run, other = study / "lstm-1l" / "seed0", tmp_path / "other"
    whole = start(processes, study)
    whole.join()
    assert whole.exitcode == 0
    run.rename(other)
    moments = random.Random(0)
    kills = 0
    for _ in range(30):
        process = start(processes, study)
        until(lambda: (run / "metrics.jsonl").exists(), process)
        process.join(moments.uniform(0, 0.25))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        # At any moment, every folder with a final name is complete.
        for folder in (*(run / "checkpoints").glob("step-*"), *(run / "resume").glob("step-*")):
            assert damage(folder) is None
            assert (folder / "checksums.json").is_file()
    if process.exitcode:  # on a busy machine it never came to its end between two kills
        process = start(processes, study)
        process.join()
    assert process.exitcode == 0
    assert kills >= 3, "it was never killed: nothing was tested"
    assert files(run) == files(other)
    assert told(run) == told(other)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_asked_to_end_it_saves_its_state_after_the_step(
    processes: ForkServerContext, study: Path, number: signal.Signals, code: int
) -> None:
    seldom = Hardware(resume_every=1e9, device="cpu")
    process = processes.Process(target=train_study, args=(study, ["gpt2-4l"], [0], SETTINGS, seldom))
    process.start()
    run = study / "gpt2-4l" / "seed0"
    until(lambda: len(checkpoint_steps(run)) > 1, process)
    os.kill(process.pid or 0, number)
    process.join()
    assert process.exitcode == code
    assert 24 not in checkpoint_steps(run)
    (state,) = resume_folders(run)
    assert int(state.name.removeprefix("step-")) >= checkpoint_steps(run)[-1]
    again = start(processes, study, "gpt2-4l")
    again.join()
    assert again.exitcode == 0
    assert 24 in checkpoint_steps(run)


@pytest.mark.parametrize("writes", [1, 2, 5, 9])
def test_a_full_disk_is_an_error_and_what_was_saved_stays(
    study: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(writes))

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")

    run = study / "lstm-1l" / "seed0"
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            train_study(study, ["lstm-1l"], [0], SETTINGS, OFTEN)
    folders = [*(run / "checkpoints").glob("*"), *(run / "resume").glob("*")]
    assert all(folder.name.startswith("step-") and damage(folder) is None for folder in folders)
    train_study(study, ["lstm-1l"], [0], SETTINGS, OFTEN)
    assert checkpoint_steps(run) == [0, 3, 6, 9, 12, 15, 18, 21, 24]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with sealed(tmp_path / "folder") as partial:
        (partial / "a").write_text("one")
        (partial / "b").write_text("two")
    return tmp_path / "folder"


def test_a_sealed_folder_knows_what_it_held(folder: Path) -> None:
    assert damage(folder) is None
    (folder / "a").write_text("ony")
    assert damage(folder) == "a has another checksum than when it was written"
    (folder / "a").unlink()
    assert damage(folder) == "a is missing"
    (folder / "checksums.json").write_text("{")
    assert damage(folder) == "checksums.json has no checksums"
    (folder / "checksums.json").unlink()
    assert damage(folder) is None  # nothing can be told


def test_a_sealed_folder_that_fails_leaves_the_old_one(folder: Path) -> None:
    def fails() -> None:
        with sealed(folder) as partial:
            (partial / "a").write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert (folder / "a").read_text() == "one"
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    with sealed(folder) as partial:
        (partial / "c").write_text("new")
    assert sorted(path.name for path in folder.iterdir()) == ["c", "checksums.json"]


def test_a_checkpoint_is_what_transformers_reads(study: Path) -> None:
    train_study(study, ["gpt2-4l"], [0], Optimization(steps=1, batch_size=2, length=12), OFTEN)
    folder = checkpoint_folder(study / "gpt2-4l" / "seed0", 1)
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "checksums.json"}
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in study.rglob("*"))
