"""The command that checks what of symground runs on this machine."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from symground.errors import DISABLE, check_types, switched_off
from symground.machine.finding import Finding
from symground.machine.parts import LOADED, LOADED_ON_A_GPU, Part, accuracy_parts, finding, run
from symground.machine.printed import lines
from symground.machine.surroundings import versions


@dataclass(frozen=True)
class Check:
    """``symground check``."""

    json: bool = False
    """Print everything as JSON, for the report of a fault. Numbers that JSON lacks are the strings inf and nan."""

    def __post_init__(self) -> None:
        check_types(self)

    def run(self) -> int:
        """Print what was found. Returns 1 if something is wrong, else 0."""
        found = _Found(quiet=self.json)
        found.look()
        if self.json:
            about = {"versions": found.versions, "device": found.device, DISABLE: os.environ.get(DISABLE)}
            print(json.dumps({**about, "findings": [_jsonable(f._asdict()) for f in found.findings]},
                             indent=1, allow_nan=False))  # fmt: skip
        else:
            print("\n".join(lines(found.versions, found.findings)))
        return int(found.has_wrong())


class _Found:
    """What is found, step by step; a step that fails leaves out those that need it."""

    def __init__(self, quiet: bool) -> None:
        self.versions, self.findings = versions(), list[Finding]()
        self.device: str | None = None
        self._progress = None if quiet else sys.stderr
        self._without: list[str] = []
        """What ends the process that loads it."""

    def has_wrong(self) -> bool:
        return any(found.status == "wrong" for found in self.findings)

    def look(self) -> None:
        try:
            switched_off(os.environ.get(DISABLE, ""))
        except ValueError as error:  # symground.ops would not import
            self.findings.append(Finding(DISABLE, "cpu", "wrong", str(error).removeprefix(f"{DISABLE}: ")))
            return
        # Without the extension, which is loaded below: a damaged file would end the process.
        about = self._run([Part("Python and torch", what="torch", without=("extension",))], 1)
        if "versions" not in about:
            self._loads([part for part in LOADED if part.name == "triton"])  # torch imports it
            return
        self.versions |= about["versions"]
        loaded = self._loads(LOADED)
        about = self._run([Part("driver", "cuda", what="driver")], 1)  # a process of its own: a driver may end it
        self.device = about.get("device")
        self.versions |= about.get("gpus", {})
        if self.device == "cuda":
            loaded |= self._loads(LOADED_ON_A_GPU)
        parts = accuracy_parts(self.device)
        self._run([part for part in parts if loaded.get(part.name, "right") == "right"], min(os.cpu_count() or 1, 8))
        here = {part.name for part in parts}
        for name in dict.fromkeys(part.name for part in accuracy_parts("cuda") if part.name not in here):
            if loaded.get(name, "right") == "right":
                self.findings.append(finding(Part(name, "cuda"), "absent", "it runs on a GPU, and torch finds none"))
        places = ["cpu", *([self.device] if self.device else [])]
        # One after the other, on a machine that is otherwise idle.
        self._run([Part(what, place, what=what) for what in ("picked", "time") for place in places], 1)

    def _run(self, parts: Iterable[Part], at_once: int) -> dict[str, Any]:
        """Keep the findings of parts; returns their further lines."""
        about: dict[str, Any] = {}
        for found, more in run(parts, at_once, self._without, self._progress):
            self.findings += found
            about |= more
        return about

    def _loads(self, parts: Sequence[Part]) -> dict[str, str]:
        """Name → status of what is loaded. What loads is no finding: its calls are."""
        status, at_once = {}, min(os.cpu_count() or 1, 4)
        for part, (found, _) in zip(parts, run(parts, at_once, self._without, self._progress), strict=True):
            last = found[-1]  # how its process ended, if it did so early
            status[part.name] = last.status
            if last.status != "right":
                self.findings.append(last)
            if last.more:
                self._without.append(part.name)
            version = part.name.replace("_", "-")
            if last.status == "wrong" and version in self.versions:
                self.versions[version] += ", does not import"
            if part.name == "extension":
                states = {"right": "built", "absent": last.said, "wrong": "built, does not load"}
                self.versions["C++ extension"] = states[last.status]
            elif part.name == "cuda" and last.status == "right":
                self.versions["C++ extension"] += ", with its part for GPUs"
        return status


def _jsonable(x: Any) -> Any:
    """``x`` with strings for the numbers that JSON lacks."""
    if isinstance(x, dict):
        return {key: _jsonable(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_jsonable(value) for value in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x
