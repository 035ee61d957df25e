"""The context of each part of the GPU record: its result file, its time limit, and what is missing on the machine."""

from __future__ import annotations

import importlib
import json
import re
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NEEDS_CUDA = "needs CUDA"
#: The number of characters of a process's output that are kept.
TAIL = 3000
#: Part → what it imports and what may be missing, or lack something itself.
NEEDS: dict[str, tuple[str, ...]] = {
    "machine": ("torch",), "gate": ("torch", "pytest"), "tests": ("pytest",), "sanitizer": (),
    **dict.fromkeys(
        ("compilation", "correctness", "attention", "graphs", "tiles", "flow", "surprisal", "lengths"),
        ("torch", "triton"),
    ),
    "mamba": ("torch", "triton", "transformers"),
    **dict.fromkeys(("trace", "llava"), ("torch", "transformers")),
    **dict.fromkeys(("training", "study"), ("torch", "transformers", "symground.training")),
}  # fmt: skip


class Record:
    """The result file of one part. It is replaced atomically, so it is always complete."""

    def __init__(self, path: Path, part: str) -> None:
        self.path, self.data = path, {"part": part, "status": "running", "missing": {}, "rows": []}

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def write(self, **values: Any) -> None:
        self.data.update(values)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(anonymous(self.data), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def add(self, **row: Any) -> None:
        self["rows"].append(row)
        self.write()


def anonymous(value: Any) -> Any:
    """``value`` without the machine's host, user and folders in its strings; keys are unchanged."""
    if isinstance(value, dict):
        return {key: anonymous(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [anonymous(x) for x in value]
    if not isinstance(value, str):
        return value
    for folder, name in ((str(ROOT), "."), (sys.prefix, "<python>"), (str(Path.home()), "~")):
        value = value.replace(folder, name)
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "<host>", value)


class Missing(Exception):  # noqa: N818 - not an error of the part
    """(name, reason) of something that a part needs and that is missing."""


@dataclass
class Context:
    record: Record
    out: Path
    dry: bool
    end: float
    data: Path | None = None
    """The folder of a study that was prepared on another machine."""

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def impl(self) -> str:
        """The implementation: our kernels, also where flash attention would come first; a dry run interprets them."""
        return "triton"

    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("float32",) if self.dry else ("bfloat16", "float32")

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def needs_cuda(self, name: str) -> None:
        if self.dry:
            raise Missing(name, NEEDS_CUDA)

    def check_missing(self, part: str) -> None:
        for module in NEEDS[part]:
            try:
                importlib.import_module(module)
            except Exception as error:  # a package built for another machine may raise any error
                raise Missing(module, f"does not import: {error}") from error

    def write_failure(self, error: str) -> None:
        """Record an error; the part continues."""
        self.record.write(status="failed", errors=[*self.record.data.get("errors", []), error])

    def rates(self) -> dict[str, float]:
        """The rates that the part `machine` measured; empty if it did not run."""
        try:
            found: dict[str, float] = json.loads((self.out / "machine.json").read_text(encoding="utf-8"))["rates"]
        except (OSError, KeyError):
            return {}
        return found
