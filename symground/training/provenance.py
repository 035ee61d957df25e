"""The inputs and versions of a run: enough to reproduce it, and to check that a folder has this run."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from symground.data.sequences import Corpus
from symground.files import differences, make_folder, read_json, sync, write_json
from symground.training.config import Hardware, TrainSettings
from symground.version import VERSION


def identity(corpus: Corpus, settings: TrainSettings) -> dict[str, Any]:
    """What identifies a run: its settings, and the tokens on which it is trained."""
    digest = hashlib.sha256(corpus.tokens.tobytes()).hexdigest()
    fingerprint: dict[str, Any] = {"tokens": len(corpus.tokens), "sha256": digest}
    if corpus.images is not None:
        fingerprint["images"] = {"number": len(corpus.images), **corpus.images.description}
    return {"settings": asdict(settings), "corpus": fingerprint}


def claim(run: Path, corpus: Corpus, settings: TrainSettings, hardware: Hardware, device: torch.device) -> None:
    """Write the run's config.json, or check that an existing one is of the same run, or of a longer one.

    Raises:
        ValueError: the folder has another run (says what differs), or its config.json is damaged.
    """
    wanted, path = identity(corpus, settings), run / "config.json"
    make_folder(run / "checkpoints")
    for folder in (run, run.parent, run.parent.parent):  # a process may have been killed just after making them
        sync(folder)
    there = _there(run)
    if there is None:
        write_json(path, {**wanted, "hardware": {**asdict(hardware), **machine(device)}, "versions": versions()})
        return
    check_same(run, there, wanted)
    if there["settings"]["steps"] < settings.steps:
        write_json(path, {**there, "settings": {**there["settings"], "steps": settings.steps}})


def _there(run: Path) -> dict[str, Any] | None:
    """The run's config.json; None if there is none, or if it is damaged but nothing was trained yet."""
    path = run / "config.json"
    if not path.exists():
        return None
    try:
        found = read_json(path)
        if isinstance(found.get("settings"), dict):
            return found
        wrong = f"{path}: expected the settings of a run, got {str(found)[:100]!r}"
    except ValueError as error:
        wrong = str(error)
    if not any((run / "checkpoints").glob("step-*")) and not any((run / "resume").glob("step-*")):
        return None
    raise ValueError(
        f"{wrong}; so it is unknown with which settings the run in {run} was trained. If they were the present ones, "
        "remove the file; otherwise remove the folder."
    )


def check_same(run: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a run with other settings or another corpus; a run with a constant rate may be extended."""
    known = TrainSettings()
    # Settings that were added after the run was trained have their defaults.
    found = {**found, "settings": {**asdict(known), **found.get("settings", {})}}
    before, now = found["settings"], wanted["settings"]
    longer = now["steps"] > before["steps"]
    if longer and now["decay"] == "constant":
        before["steps"] = now["steps"]
    differing = [
        text
        for part, values in wanted.items()
        for text in differences(found.get(part), values, "" if part == "settings" else f"{part} ")
    ]
    if not differing:
        return
    why = ""
    if longer and len(differing) == 1 and differing[0].startswith("steps is "):
        why = (
            f" A run of {now['steps']} steps differs from the first step on, because the learning rate falls over all "
            f"steps (decay {now['decay']}). Only a run with --decay constant can be extended."
        )
    raise ValueError(f"{run} has a run with other settings: {'; '.join(differing)}.{why} Choose another folder.")


def versions() -> dict[str, str | None]:
    """Versions of the software that computes, and this package's revision if it is a checkout."""
    return {
        "symground": VERSION, "revision": _revision(), "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip


def machine(device: torch.device) -> dict[str, Any]:
    """The GPU or the processor that computes, and the number of threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": name, "threads": torch.get_num_threads()}


def _processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _revision() -> str | None:
    """The commit of the package's own repository, with "+" if it has changes; None without a repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head, changed = (
            subprocess.run(
                ["git", "-C", str(root), *what], capture_output=True, text=True, check=True, timeout=10
            ).stdout
            for what in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("+" if changed.strip() else "")
