"""The process of one part: what it finds goes to standard output, a line of JSON each.

It is a process of its own because a kernel that fails may end it, or leave its GPU unusable for what comes after. The
names of all cases are written first, and each again before the case is tried; the last line says that all was done.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from symground.machine.finding import Finding, said_by


def found(name: str, what: str, device: str, impl: str, dtypes: list[str]) -> Iterator[Finding | dict[str, Any]]:
    """What a part finds: findings, and dictionaries of what else it tells (`parts` reads them)."""
    if what == "torch":
        import torch

        import symground.ops  # noqa: F401
        from symground.machine.surroundings import built_for

        yield {"versions": {"torch is built for": built_for(torch)}}
    elif what == "loads":
        from symground.machine.loading import loaded

        yield Finding(name, device, *loaded(name))
    elif what == "driver":
        from symground.machine.surroundings import faults, gpus

        yield from faults()
        yield gpus()
    elif what == "accuracy":
        import torch

        from symground.machine.accuracy import compared, names

        yield {"plan": list(names(impl))}
        for dtype in dtypes:
            yield from compared(impl, device, getattr(torch, dtype))
    else:
        from symground.machine import speed

        yield from {"picked": speed.picked, "time": speed.timed}[what](device)


def main(argument: str) -> int:
    try:
        for line in found(**json.loads(argument)):
            _tell({"finding": line._asdict()} if isinstance(line, Finding) else line)
    except Exception as error:
        _tell({"raised": said_by(error)})
        return 1
    _tell({"ended": True})
    return 0


def _tell(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
