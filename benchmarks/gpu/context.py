"""What every part of the GPU record is given: its result file, its time, and what the machine lacks."""

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
#: Characters of a process' output that are kept.
TAIL = 3000
#: What each part imports that a bare machine may lack.
NEEDS: dict[str, tuple[str, ...]] = {
    "machine": ("torch",), "gate": ("torch", "pytest"), "tests": ("pytest",), "sanitizer": (),
    "determinism": ("torch", "triton"), "attention": ("torch", "triton"), "flow": ("torch", "triton"),
    "surprisal": ("torch", "triton"), "mamba": ("torch", "triton", "transformers"),
    "training": ("torch", "transformers"), "study": ("torch", "transformers"),
    "trace": ("torch", "transformers"), "llava": ("torch", "transformers"),
}  # fmt: skip


class Record:
    """One part's result file, whole at every moment."""

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
    """``value`` with no host, user or folder of the machine in its strings; keys stay as they are."""
    if isinstance(value, dict):
        return {key: anonymous(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [anonymous(x) for x in value]
    if not isinstance(value, str):
        return value
    for folder, name in ((str(ROOT), "."), (sys.prefix, "<python>"), (str(Path.home()), "~")):
        value = value.replace(folder, name)
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "<host>", value)


class Missing(Exception):  # noqa: N818 - no error: it is what a machine lacks
    """(name, reason) of what a part cannot do without."""


@dataclass
class Context:
    record: Record
    out: Path
    dry: bool
    end: float
    data: Path | None = None
    """A study's folder, prepared elsewhere."""

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def impl(self) -> str | None:
        """In a dry run too the kernels run, in the interpreter."""
        return "triton" if self.dry else None

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
            except Exception as error:  # a package built for another machine fails in ways of its own
                raise Missing(module, f"does not import: {error}") from error

    def write_failure(self, error: str) -> None:
        """The part goes on; its record says that something in it went wrong."""
        self.record.write(status="failed", errors=[*self.record.data.get("errors", []), error])

    def rates(self) -> dict[str, float]:
        """What the part `machine` measured; empty without it."""
        try:
            found: dict[str, float] = json.loads((self.out / "machine.json").read_text(encoding="utf-8"))["rates"]
        except (OSError, KeyError):
            return {}
        return found
