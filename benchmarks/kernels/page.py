"""The page of every shipped configuration: the table under the newest Triton, and the versions without a fault."""

from __future__ import annotations

import re

_TABLE = re.compile(r"compiled by Triton ([\d.]+) .*?\n\n(\|.*)", re.DOTALL)
_CHECKED = re.compile(r"^No configuration has a fault under Triton ([\d., ]+)\.$", re.MULTILINE)


def updated(page: str, table: str, version: str, faulty: bool) -> str:
    """The page after all configurations were compiled by Triton ``version``, with the result ``table``.

    Of the same configurations, the newest version's table stays; the versions that were checked are kept. A changed
    configuration makes all of that void.
    """
    before, listed = _TABLE.search(page), _CHECKED.search(page)
    shown, checked = version, set()
    if before and _configurations(before[2]) == _configurations(table):
        checked = set(listed[1].split(", ")) if listed else set()
        if _order(before[1]) > _order(version):
            shown, table = before[1], before[2].strip()
    checked = checked - {version} if faulty else checked | {version}
    note = f"No configuration has a fault under Triton {', '.join(sorted(checked, key=_order))}.\n\n" if checked else ""
    return note + (
        f"Every shipped configuration, causal, 8 × 12 × 1024, and for a vocabulary 8192 rows of 768, 50257 words, "
        f"compiled by Triton {shown} (`python -m benchmarks kernels`).\n\n{table}\n"
    )


def _order(version: str) -> list[int]:
    return [int(n) for n in version.split(".")]


def _configurations(table: str) -> list[list[str]]:
    """The first five columns: kernel, architecture, dtype, head size, configuration."""
    return [line.split(" | ")[:5] for line in table.strip().splitlines()]
