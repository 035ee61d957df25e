"""A training step beside transformers' GPT-2 and a nanoGPT-style one in the same loop, and the cost of checkpoints.

python -m pytest benchmarks/suites/test_training.py --benchmark-only --benchmark-json=FILE
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common.memory import ROOT
from benchmarks.peers.training import (
    GIVEN_BACK,
    KEPT,
    PEERS,
    SHAPES,
    STAGE,
    Shape,
    batch,
    prepared,
)
from symground.models import create
from symground.training import Hardware
from symground.training.checkpoints import save_checkpoint, save_resume
from symground.training.schedule import checkpoint_schedule
from symground.training.step import Trainer
from symground.training.workers import Workers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: The study's checkpoints, dense at the beginning.
DENSE, STEPS = "0,1,2,4,…,512,every 500", 20_000


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_step(benchmark: Any, in_turns: Callable[..., None], shape: Shape, name: str) -> None:
    rounds = 61 if shape.vocabulary < 1000 else 9  # the shortest steps vary by a quarter
    in_turns(f"{STAGE}, {shape}", name, partial(prepared, shape, DEVICE), rounds, DEVICE)
    benchmark.extra_info |= {"stage": STAGE, "peer": name, "device": DEVICE, **shape.row}


@pytest.mark.parametrize("name", [KEPT, GIVEN_BACK])
def test_memory_between_steps(benchmark: Any, in_turns: Callable[..., None], name: str) -> None:
    """In separate processes, since malloc's settings are those of the process."""
    if DEVICE != "cpu":
        pytest.skip("memory between steps is a matter of CPUs")

    def alone() -> float:
        command = [sys.executable, "-m", "benchmarks.peers.training", name, str(torch.get_num_threads())]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return statistics.median(json.loads(done.stdout.strip().splitlines()[-1]))

    benchmark.extra_info |= {"stage": "memory between steps", "peer": name, "seconds_a_step": alone(), **SHAPES[0].row}
    in_turns(f"memory, {name}", name, lambda: {name: lambda: None}, 1, DEVICE)


@pytest.mark.parametrize("what", ["step", "checkpoint", "state"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]], ids=str)
def test_checkpoints(benchmark: Any, in_turns: Callable[..., None], shape: Shape, what: str, tmp_path: Path) -> None:
    """A checkpoint and a resume state, synced to disk, beside the training step."""

    def runs() -> dict[str, Callable[[], Any]]:
        model = create(shape.model, shape.vocabulary, positions=shape.T).to(DEVICE).train()
        trainer = Trainer(model, shape.settings, Hardware(device=DEVICE), Workers(0, 1, torch.device(DEVICE)))
        inputs, targets = batch(shape)
        number = itertools.count()
        trainer.step(inputs, targets, 1e-4)  # so that the optimizer has a state
        return {
            "step": lambda: float(trainer.step(inputs, targets, 1e-4).loss),
            "checkpoint": lambda: save_checkpoint(tmp_path, next(number), model),
            "state": lambda: save_resume(tmp_path, next(number), model, trainer.optimizer),
        }

    in_turns(f"checkpoints, {shape}", what, runs, 9, DEVICE)
    dense = len(checkpoint_schedule(DENSE, STEPS))
    benchmark.extra_info |= {
        "stage": "checkpoints", "peer": what, "device": DEVICE, "schedule": DENSE, "steps": STEPS, "checkpoints": dense,
        "seconds_between_states": Hardware().resume_every, **shape.row,
    }  # fmt: skip
