"""The command that checks what of symground runs on this machine."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from symground.errors import check_types
from symground.machine.finding import Finding
from symground.machine.parts import VARIABLE, Part, accuracy_parts, run

_WIDTH = 120


@dataclass(frozen=True)
class Check:
    """``symground check``."""

    json: bool = False
    """Print everything as JSON, for the report of a fault."""

    def __post_init__(self) -> None:
        check_types(self)

    def run(self) -> int:
        """Print what was found. Returns 1 if something is wrong, else 0."""
        ((faults, about),) = run([Part("Python and torch", what="surroundings")], 1)
        findings = list(faults)
        if about:  # else torch does not import
            device = about["device"]
            places = ["cpu", *([device] if device else [])]
            tried = run(accuracy_parts(device), min(os.cpu_count() or 1, 8))
            findings += [finding for found, _ in tried for finding in found]
            # One after the other, on a machine that is otherwise idle.
            last = run([Part(what, place, what=what) for what in ("picked", "time") for place in places], 1)
            findings += [finding for found, _ in last for finding in found]
        wrong = [finding for finding in findings if finding.status == "wrong"]
        if self.json:
            print(json.dumps({**about, VARIABLE: os.environ.get(VARIABLE), "findings": [f._asdict() for f in findings]},
                             indent=1))  # fmt: skip
        else:
            print("\n".join(_told(about, findings)))
        return 1 if wrong else 0


def _told(about: dict[str, Any], findings: list[Finding]) -> Iterator[str]:
    """The lines for a reader."""
    versions = about.get("versions", {})
    width = max(map(len, versions), default=0) + 2
    yield from (f"{name:<{width}}{version}" for name, version in versions.items())
    compared = [f for f in findings if f.op and f.part not in ("picked", "time")]
    others = [f for f in findings if not f.op]
    yield from ("", "against the reference, with plain PyTorch's error beside it:")
    yield from _accuracy(compared, [f for f in others if f.part not in ("driver", "CUDA libraries")])
    for part, title in (("picked", "what impl=None picks:"), ("time", "time of one layer:")):
        lines = [f for f in findings if f.part == part and f.op]
        if lines:
            yield from ("", title)
            names = [f"  {f.device}, {f.dtype}, {f.op}" for f in lines]
            wide = max(map(len, names)) + 2
            yield from (f"{name:<{wide}}{f.said}" for name, f in zip(names, lines, strict=True))
    yield ""
    for finding in others:
        if finding.part in ("driver", "CUDA libraries"):
            yield from _wrapped(f"{finding.status}: {finding.part}: {finding.said}")
    wrong = [f for f in findings if f.status == "wrong"]
    for finding in wrong:
        if finding.part not in ("driver", "CUDA libraries"):
            where = ", ".join(filter(None, (finding.device, finding.dtype, finding.op)))
            yield from _wrapped(f"wrong: {finding.part} ({where}): {finding.said}. {_without(finding.part)}")
    yield f"{len(wrong)} wrong" if wrong else "all that can run here is right"


def _accuracy(compared: list[Finding], parts: Iterable[Finding]) -> Iterator[str]:
    """A line for each implementation and dtype: its worst error; then the parts that did not run."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in compared:
        groups.setdefault((finding.device, finding.part, finding.dtype), []).append(finding)
    for (device, part, dtype), found in groups.items():
        ran = [f for f in found if f.error is not None]
        wrong = sum(f.status == "wrong" for f in found)
        name = f"  {device}, {part}, {dtype}"
        if not ran:
            yield f"{name:<32}{'wrong' if wrong else 'absent: ' + found[0].said}"
            continue
        worst = max(ran, key=lambda f: f.error or 0.0)
        count = f"{len(ran) - wrong} of {len(found)} calls right"
        yield f"{name:<32}{count:<24}{worst.error:.1e}, PyTorch's {worst.eager:.1e}, in {worst.op}"
    for finding in parts:
        yield from _wrapped(f"  {finding.device}, {finding.part}: {finding.status}: {finding.said}")


def _without(part: str) -> str:
    """How to go on without a part."""
    if part in ("Python and torch", "picked", "time"):
        return "See the lines above"
    return f"To go on without it: {VARIABLE}={part}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="    ")
