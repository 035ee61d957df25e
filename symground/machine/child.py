"""The process of one part: what it finds goes to standard output, a line of JSON each.

It is a process of its own because a kernel that fails may end it, or leave its GPU unusable for what comes after. The
name of a case is written before the case is tried.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from symground.machine.finding import Finding


def found(
    name: str, what: str, device: str, impl: str, dtypes: list[str]
) -> Iterator[Finding | str | dict[str, object]]:
    """What a part finds: findings, names of cases, or a dictionary of versions and devices."""
    if what == "surroundings":
        import torch

        from symground.machine.surroundings import faults, versions

        yield from faults()
        here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        yield {"versions": versions(), "device": None if here is None else here.type}
    elif what == "accuracy":
        import torch

        from symground.machine.accuracy import compared, lacking

        lacks = lacking(name)
        if lacks is not None:
            yield Finding(name, device, *lacks)
            return
        for dtype in dtypes:
            yield from compared(impl, device, getattr(torch, dtype))
    else:
        from symground.machine import speed

        yield from {"picked": speed.picked, "time": speed.timed}[what](device)


def main(argument: str) -> None:
    for line in found(**json.loads(argument)):
        given = {"finding": line._asdict()} if isinstance(line, Finding) else line
        print(json.dumps({"begins": given} if isinstance(given, str) else given), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
