"""Several processes train one model with the same rows and losses as one process; if one dies, the others end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from symground.data import Corpus
from symground.files import checkpoint_folder
from symground.training import Hardware, TrainSettings, train

pytestmark = pytest.mark.trains

SETTINGS = TrainSettings(model="gpt2-4l", steps=12, batch_size=8, length=16, checkpoints="0", warmup=2)


def torchrun(*what: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two processes of gloo on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *what]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_as_one(study: Path, tmp_path: Path) -> None:
    corpus = Corpus.load(study / "data", study)
    alone, together = tmp_path / "alone", study / "gpt2-4l" / "seed0"
    train(corpus, SETTINGS, alone)
    options = ["--steps", "12", "--batch-size", "8", "--length", "16", "--checkpoints", "0", "--warmup", "2"]
    done = torchrun(
        "-m",
        "symground.cli",
        "train",
        str(study),
        "--model",
        "gpt2-4l",
        "--device",
        "cpu",
        "--accumulate",
        "2",
        *options,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-5)
    ours, others = (
        load_file(checkpoint_folder(run, 12) / "model.safetensors") for run in (together, alone)
    )  # fmt: skip
    for name, weight in others.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-4)
    # Only the first process writes and prints, so each step is there once.
    assert [json.loads(line)["step"] for line in (together / "metrics.jsonl").read_text().splitlines()] == [10, 12]
    assert done.stdout.count(str(study / "gpt2-4l" / "seed0")) >= 1
    assert (
        json.loads((together / "config.json").read_text())["settings"]
        == json.loads((alone / "config.json").read_text())["settings"]
    )  # the number of processes is no part of the run


DYING = """
import os, sys
from pathlib import Path
from symground.recipes import train_study
from symground.training import Hardware, Optimization
from symground.training.step import Trainer

step, calls = Trainer.step, []
def dies(*args):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 3:
        raise RuntimeError("a cosmic ray hit rank 1")
    return step(*args)
Trainer.step = dies
optimization = Optimization(steps=500, batch_size=8, length=16, checkpoints="0,1,2")
train_study(Path(sys.argv[1]), ["gpt2-4l"], [0], optimization, Hardware(device="cpu"))
"""


def test_a_process_that_dies_takes_the_job_down_with_its_own_error(study: Path, tmp_path: Path) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    done = torchrun(str(script), str(study))
    assert done.returncode != 0
    assert "a cosmic ray hit rank 1" in done.stderr
    assert checkpoint_folder(study / "gpt2-4l" / "seed0", 2).is_dir()


def test_rows_that_cannot_be_shared_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size: expected a multiple of 1 processes × 3 parts, got 8"):
        train(corpus, SETTINGS, tmp_path / "run", Hardware(accumulate=3))
    assert not (tmp_path / "run").exists()
