"""Checkpoints and resume states on disk: written under a temporary name, synced, then renamed; nothing is pickled."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from symground.folders import checkpoint_folder

_KEEP = 2  # resume states: the last, and one before it should the last be damaged
_RESUME = re.compile(r"step-(\d{8})\.safetensors$")


def save_checkpoint(run: Path, step: int, model: PreTrainedModel) -> None:
    """Save the model in Hugging Face layout at ``step``; a checkpoint that is already there is left."""
    folder = checkpoint_folder(run, step)
    if folder.is_dir():
        return
    partial = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    for file in partial.iterdir():
        _sync(file)
    partial.rename(folder)
    _sync(folder.parent)


def save_resume(run: Path, step: int, model: PreTrainedModel, optimizer: Optimizer) -> None:
    """Save what training needs to go on from ``step``: weights, optimizer moments, torch's random state."""
    tensors = {f"model.{name}": value for name, value in _weights(model).items()}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": value for key, value in moments.items()}
    tensors["random"] = torch.get_rng_state()
    folder = run / "resume"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
    _sync(partial)
    os.replace(partial, folder / f"step-{step:08d}.safetensors")
    for old in _resume_files(run)[:-_KEEP]:
        old.unlink()


def load_resume(run: Path, model: PreTrainedModel, optimizer: Optimizer) -> int:
    """Load the newest resume state that is whole into model and optimizer; returns its step, 0 when there is none."""
    for file in reversed(_resume_files(run)):
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError):
            continue  # cut short: the one before it serves
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
        torch.set_rng_state(tensors["random"])
        match = _RESUME.search(file.name)
        assert match is not None
        return int(match[1])
    return 0


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict with each shared tensor once, as safetensors requires."""
    seen: set[int] = set()
    kept = {}
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            kept[name] = value
    return kept


def _resume_files(run: Path) -> list[Path]:
    return sorted(path for path in (run / "resume").glob("step-*.safetensors") if _RESUME.search(path.name))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
