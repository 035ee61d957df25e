"""A study in which tables are missing: its page is written, and names each with the command that fills it."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

import symground as sg
from symground.analysis.results import TABLES
from symground.analysis.run import ANALYSES
from symground.reports.sections import parts

Made = Callable[..., Path]
MADE_BY = {table: what for what, tables in ANALYSES.items() for table in tables}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures: these tests do not read them, and they are slow."""
    monkeypatch.setattr(parts, "svg_of", lambda *_: "<svg></svg>")


def named(study: Path, *gone: str) -> list[str]:
    """The commands that the page names as missing, with these tables moved away."""
    away = [study / "results" / f"{name}.parquet" for name in gone]
    for path in away:
        path.rename(path.with_suffix(".away"))
    try:
        page = sg.report(study).read_text(encoding="utf-8")
    finally:
        for path in away:
            path.with_suffix(".away").rename(path)
    return [each for text in re.findall(r'class="missing">Missing: (.*?)</p>', page) for each in text.split("; ")]


def check(study: Path, *gone: str) -> None:
    said = named(study, *gone)
    for table in gone:
        what = MADE_BY[table]
        # An analysis counts as done if its last table is there, so that only --again repeats it.
        again = "" if ANALYSES[what][-1] in gone else " --again"
        command = f"(symground analyze study --what {what}{again})"
        assert sum(command in text for text in said) >= sum(MADE_BY[other] == what for other in gone), (gone, said)


@pytest.fixture
def small(made: Made) -> Path:
    return made(seeds=2, steps=(0, 400), contexts=2, nouns=("ball", "dog", "book"), layers=2)


def test_each_missing_table_is_named_with_its_command(small: Path) -> None:
    assert named(small) == []
    for table in TABLES:
        check(small, table)


@pytest.mark.slow
def test_each_pair_of_missing_tables_is_named_with_its_commands(small: Path) -> None:
    for pair in combinations(TABLES, 2):
        check(small, *pair)
