"""The lines of ``symground check`` for a reader."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby

from symground.errors import DISABLE
from symground.machine.finding import Finding

_WIDTH = 120
#: Parts that say themselves what to do.
_TELLING = (DISABLE, "driver", "CUDA libraries")
#: Packages that transformers takes to be usable where they are installed.
_OF_TRANSFORMERS = ("flash_attn", "mamba_ssm", "causal_conv1d")


def lines(versions: dict[str, str], findings: list[Finding]) -> Iterator[str]:
    """Versions, what was compared, what did not run and why, what is picked, times; last what is wrong."""
    width = max(map(len, versions), default=0) + 2
    yield from (f"{name:<{width}}{version}" for name, version in versions.items())
    compared = [f for f in findings if f.op and f.part not in ("picked", "time")]
    if compared:
        yield from ("", "against the reference, with plain PyTorch's error beside it:")
        yield from _accuracy(compared)
    others = [f for f in findings if not f.op and f.part not in _TELLING and f.status == "absent"]
    if others:
        yield from ("", "not tried:")
        for finding in others:
            yield from _wrapped(f"  {finding.device}, {finding.part}: {finding.said}")
    for part, title in (("picked", "what impl=None picks:"), ("time", "time of one layer:")):
        listed = [f for f in findings if f.part == part and f.op and f.status == "right"]
        if listed:
            yield from ("", title)
            names = [f"  {f.device}, {f.dtype}, {f.op}" for f in listed]
            wide = max(map(len, names)) + 2
            yield from (f"{name:<{wide}}{f.said}" for name, f in zip(names, listed, strict=True))
    yield ""
    for finding in findings:
        if finding.part in _TELLING:
            yield from _wrapped(f"{finding.status}: {finding.part}: {finding.said}")
    wrong = [f for f in findings if f.status == "wrong"]
    alike = groupby((f for f in wrong if f.part not in _TELLING), lambda f: f._replace(op="", error=None, eager=None))
    for finding, group in alike:
        calls = [f.op for f in group if f.op]
        more = f" and {len(calls) - 1} more" if len(calls) > 1 else ""
        where = ", ".join(filter(None, (finding.device, finding.dtype, *calls[:1])))
        yield from _wrapped(f"wrong: {finding.part} ({where}{more}): {finding.said}. {_without(finding)}".rstrip())
    if wrong:
        yield f"{len(wrong)} wrong"
    else:
        tried = any(f.status == "right" for f in compared)
        yield "all that can run here is right" if tried else "nothing was tried: the lines above say why"


def _accuracy(compared: Iterable[Finding]) -> Iterator[str]:
    """A line for each implementation and dtype, with its worst error."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in compared:
        groups.setdefault((finding.device, finding.part, finding.dtype), []).append(finding)
    for (device, part, dtype), found in groups.items():
        name = f"  {device}, {part}, {dtype}"
        asked = [f for f in found if f.status != "absent"]
        if not asked:
            yield f"{name:<32}absent: {found[0].said}"
            continue
        count = f"{sum(f.status == 'right' for f in asked)} of {len(asked)} calls right"
        ran = [f for f in asked if f.error is not None]
        if not ran:
            yield f"{name:<32}{count}"
            continue
        worst = max(ran, key=lambda f: f.error or 0.0)
        yield f"{name:<32}{count:<24}{worst.error:.1e}, PyTorch's {worst.eager:.1e}, in {worst.op}"


def _without(finding: Finding) -> str:
    """How to go on without a part, and without what is switched off already."""
    part, loads = finding.part, not finding.dtype
    if part in ("Python and torch", "picked", "time"):
        return ""
    if part == "triton" and loads and finding.more:  # an exception is no matter for torch
        return (
            "torch imports it with its compiler, so it is not enough to switch it off: install it again, or remove it"
        )
    before = [name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()]
    also = "; transformers may import it too, unless it is removed" if part in _OF_TRANSFORMERS and loads else ""
    return f"To go on without it: {DISABLE}={','.join([*before, part])}{also}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
