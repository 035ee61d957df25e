"""Checkpoints and resume states on disk. Each is a sealed folder, and nothing is pickled."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from symground.files import checkpoint_folder, damage, discard, sealed, write_text
from symground.training.metrics import lines_until

_KEEP = 2  # resume states: the last, and the one before it in case the last is damaged
_RESUME = re.compile(r"step-(\d{8})$")
_STATE = "state.safetensors"
METRICS = "metrics.jsonl"


def save_checkpoint(run: Path, step: int, model: PreTrainedModel) -> None:
    """Save the model in Hugging Face layout at ``step``, unless there is an undamaged checkpoint already."""
    folder = checkpoint_folder(run, step)
    if folder.is_dir() and damage(folder) is None:
        return
    with sealed(folder) as partial:
        model.save_pretrained(partial)


def save_resume(run: Path, step: int, model: PreTrainedModel, optimizer: Optimizer, metrics: str) -> None:
    """Save what is needed to resume after ``step``: weights, optimizer moments, every device's random state.

    The learning rate and the rows of a step are functions of its number, so they need no state.

    Args:
        run: the run's folder.
        step: the last finished step.
        model: its weights are saved.
        optimizer: its moments are saved.
        metrics: the lines of metrics.jsonl up to the step; they are saved too, since that file may be lost.
    """
    tensors = {f"model.{name}": value for name, value in _weights(model).items()}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": value for key, value in moments.items()}
    tensors |= {f"random.{device}": random for device, random in _random_states().items()}
    with sealed(_resume_folder(run, step)) as partial:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial / _STATE)
        write_text(partial / METRICS, metrics)
    for old in resume_folders(run)[:-_KEEP]:
        discard(old)


class Resumed(NamedTuple):
    """The state from which training resumes."""

    step: int
    metrics: list[str]
    """The lines of metrics.jsonl up to the step."""


def load_resume(run: Path, model: PreTrainedModel, optimizer: Optimizer) -> Resumed:
    """Load the newest undamaged resume state into model and optimizer; step 0 if there is none."""
    for folder in reversed(resume_folders(run)):
        wrong = damage(folder, required=True)
        if wrong is not None:
            print(f"{folder} is damaged ({wrong}); the state before it is used", file=sys.stderr)
            continue
        tensors = load_file(folder / _STATE)
        model.load_state_dict(
            {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")},
            strict=False,  # tied weights are stored once
        )
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".")
                state.setdefault(int(i), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        torch.set_rng_state(tensors["random.cpu"])
        for gpu in range(torch.cuda.device_count()):
            if f"random.{gpu}" in tensors:
                torch.cuda.set_rng_state(tensors[f"random.{gpu}"], gpu)
        match = _RESUME.search(folder.name)
        assert match is not None
        step = int(match[1])
        # A state saved by an older version has no metrics.
        metrics = folder / METRICS if (folder / METRICS).is_file() else run / METRICS
        return Resumed(step, lines_until(metrics, step))
    return Resumed(0, [])


def resume_folders(run: Path) -> list[Path]:
    """The resume states of a run, in order."""
    return sorted(path for path in (run / "resume").glob("step-*") if path.is_dir() and _RESUME.search(path.name))


def _resume_folder(run: Path, step: int) -> Path:
    return run / "resume" / f"step-{step:08d}"


def _random_states() -> dict[str, Tensor]:
    devices = {str(i): torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}
    return {"cpu": torch.get_rng_state(), **devices}


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict, with each shared tensor once as safetensors requires."""
    seen: set[int] = set()
    kept = {}
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            kept[name] = value
    return kept
