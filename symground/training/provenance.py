"""What a run was made with and from: enough to make it again, and to know that a folder holds this run."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from symground.data.corpus import Corpus
from symground.folders import read_json, write_json
from symground.training.config import Hardware, TrainSettings
from symground.version import VERSION


def identity(corpus: Corpus, settings: TrainSettings) -> dict[str, Any]:
    """What makes a run this run: its settings, and the tokens it is trained on."""
    digest = hashlib.sha256(corpus.tokens.tobytes()).hexdigest()
    fingerprint: dict[str, Any] = {"tokens": len(corpus.tokens), "sha256": digest}
    if corpus.images is not None:
        fingerprint["images"] = {"number": len(corpus.images), **corpus.images.description}
    return {"settings": asdict(settings), "corpus": fingerprint}


def claim(run: Path, corpus: Corpus, settings: TrainSettings, hardware: Hardware, device: torch.device) -> None:
    """Write the run's config.json, or check that the one there is of the same run.

    Raises:
        ValueError: the folder holds another run (says what differs).
    """
    config, path = identity(corpus, settings), run / "config.json"
    if path.exists():
        check_same(run, read_json(path), config)
        return
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_json(path, {**config, "hardware": {**asdict(hardware), **_machine(device)}, "versions": versions()})


def check_same(run: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a run of other settings, or of another corpus."""
    known = TrainSettings()
    # Settings younger than the run stand where they did.
    found = {**found, "settings": {**asdict(known), **found.get("settings", {})}}
    differing = list(_differences(found, wanted))
    if differing:
        raise ValueError(f"{run} holds a run of other settings: {'; '.join(differing)}. Choose another folder.")


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    for part, values in wanted.items():
        there = found.get(part)
        for name, value in values.items():
            before = there.get(name) if isinstance(there, dict) else None
            if before != value:
                yield f"{name if part == 'settings' else part + ' ' + name} is {before!r} there, {value!r} here"


def versions() -> dict[str, str | None]:
    """Of what computes, and the revision of this package where it is a checkout."""
    return {
        "symground": VERSION, "revision": _revision(), "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": name, "threads": torch.get_num_threads()}


def _revision() -> str | None:
    """The commit of the package's own repository, "+" where it was changed since; None outside one."""
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
