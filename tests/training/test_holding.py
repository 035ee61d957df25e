"""A run's folder: one process at a time, longer runs, and the permissions of its files."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from symground.analysis.tracing.lenses.tuned_lens import TunedLens
from symground.data import Corpus
from symground.files import checkpoint_folder, checkpoint_steps, held, read_json, remove, replacing
from symground.files.folder_lock import LOCK
from symground.running import run_jobs
from symground.training import Hardware, TrainSettings, train
from symground.training.checkpoints import resume_folders

pytestmark = pytest.mark.trains

TINY = TrainSettings(model="lstm-1l", steps=4, batch_size=2, length=12, warmup=2, checkpoints="0,2", decay="constant")


HOLDS = """
import sys
from pathlib import Path
from symground.files import held
with held(Path(sys.argv[1]), "trains"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("dies", [True, False])
def test_a_folder_is_held_until_its_holder_ends_however_it_does(tmp_path: Path, dies: bool) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(
                BlockingIOError, match=rf"run is held by process {holder.pid} on .*, which trains there since"
            ),
            held(tmp_path / "run", "analyses"),
        ):
            pass
        if dies:
            holder.kill()
        else:
            holder.communicate("\n")
    assert (tmp_path / "run" / LOCK).exists() == dies
    with held(tmp_path / "run", "analyses"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["process"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EIO])
def test_a_file_system_without_locks_stops_nobody(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(_: int, __: int) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr("fcntl.flock", none)
    if number == errno.EIO:
        with pytest.raises(OSError, match="no locks"), held(tmp_path, "trains"):
            pass
        return
    with held(tmp_path, "trains"):
        assert f"{tmp_path}: this file system has no locks" in capsys.readouterr().err


def test_two_trainings_and_two_rounds_of_jobs_in_one_folder(corpus: Corpus, tmp_path: Path) -> None:
    with held(tmp_path / "run", "trains"):
        with pytest.raises(BlockingIOError, match=f"held by process {os.getpid()} on"):
            train(corpus, TINY, tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK], "nothing was touched"
    with held(tmp_path / "jobs", "runs jobs"), pytest.raises(BlockingIOError, match="which runs jobs there"):
        run_jobs({}, tmp_path / "jobs")
    train(corpus, TINY, tmp_path / "run")
    assert not (tmp_path / "run" / LOCK).exists()


def weights(run: Path, step: int) -> bytes:
    return (checkpoint_folder(run, step) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("state", ["there", "lost"])
def test_a_finished_run_whose_rate_stays_is_made_longer_to_the_same_bits(
    corpus: Corpus, tmp_path: Path, state: str
) -> None:
    longer = replace(TINY, steps=7)
    train(corpus, longer, tmp_path / "whole")
    train(corpus, TINY, tmp_path / "run")
    before = weights(tmp_path / "run", 4)
    assert [folder.name for folder in resume_folders(tmp_path / "run")] == ["step-00000004"]
    if state == "lost":
        remove(tmp_path / "run" / "resume")
    train(corpus, longer, tmp_path / "run")
    assert checkpoint_steps(tmp_path / "run") == [0, 2, 4, 7]
    assert weights(tmp_path / "run", 4) == before
    assert weights(tmp_path / "run", 7) == weights(tmp_path / "whole", 7)
    assert read_json(tmp_path / "run" / "config.json")["settings"]["steps"] == 7
    with pytest.raises(ValueError, match=r"steps is 7 there, 4 here\. Choose another folder"):
        train(corpus, TINY, tmp_path / "run")


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_a_run_whose_rate_falls_cannot_be_made_longer_and_is_told_why(
    corpus: Corpus, tmp_path: Path, decay: str
) -> None:
    train(corpus, replace(TINY, decay=decay), tmp_path / "run")
    with pytest.raises(ValueError, match=rf"steps is 4 there, 7 here\. .*rate falls over all steps \(decay {decay}\)"):
        train(corpus, replace(TINY, decay=decay, steps=7), tmp_path / "run")
    with pytest.raises(ValueError, match=r"steps is 4 there, 7 here; length is 12 there, 13 here\. Choose"):
        train(corpus, replace(TINY, decay=decay, steps=7, length=13), tmp_path / "run")


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_what_is_written_may_be_read_by_whom_the_umask_allows(corpus: Corpus, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        train(corpus, TINY, tmp_path / "run", Hardware(resume_every=0))
        TunedLens(torch.zeros(1, 2, 2), torch.zeros(1, 2), ((0.0,),)).save(tmp_path / "lens.safetensors")
        with replacing(tmp_path / "other") as partial:
            os.close(os.open(partial.with_name("made"), os.O_CREAT, 0o600))
            partial.with_name("made").rename(partial)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"model.safetensors", "state.safetensors", "config.json", "metrics.jsonl"}
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path


def test_tensorboard_shows_each_step_once_after_a_resume(corpus: Corpus, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run, settings = tmp_path / "run", replace(TINY, steps=6, checkpoints="every 1")

    def stops(metrics: Mapping[str, float]) -> None:
        if metrics["step"] == 5:
            raise MemoryError

    with pytest.raises(MemoryError):
        train(corpus, settings, run, Hardware(tensorboard=True, resume_every=0), trackers=[stops])
    assert [folder.name for folder in resume_folders(run)] == ["step-00000003", "step-00000004"]
    remove(resume_folders(run)[-1])  # step 4 is told again
    train(corpus, settings, run, Hardware(tensorboard=True))
    shown = accumulator.EventAccumulator(str(run / "tensorboard"))
    shown.Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = shown.Scalars("train/loss")
    assert [event.step for event in events] == [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events] == pytest.approx([line["loss"] for line in lines])
