"""The tables of the page of a study in which no two values are equal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from symground.analysis.results import read_table
from symground.reports.sections import SECTIONS, behaviour
from symground.reports.sections.parts import Section, StudyResults, TablePart
from tests.reports.tables.recomputed import AGES
from tests.reports.tables.shown import Reader


@pytest.fixture(scope="session")
def study(distinct_study: Path) -> StudyResults:
    return StudyResults.read(distinct_study)


@pytest.fixture(scope="session")
def table(distinct_study: Path) -> Callable[[str], pd.DataFrame]:
    """The results, read from their files."""
    return lambda name: read_table(distinct_study, name)


class PageTables:
    """The tables of the page by name. A section is made when one of its tables is first read."""

    def __init__(self, study: StudyResults) -> None:
        self._sections = [lambda: behaviour(study, AGES), *(partial(section, study) for section in SECTIONS)]
        self._found: dict[int, dict[str, list[dict[str, str]]]] = {}

    def __getitem__(self, name: str) -> list[dict[str, str]]:
        (number,) = (i for i, names in enumerate(NAMES) if name in names)
        if number not in self._found:
            section: Section = self._sections[number]()
            parts = [part for part in section.parts if isinstance(part, TablePart)]
            assert [part.name for part in parts] == list(NAMES[number])
            self._found[number] = {part.name: Reader(str(part.html)).rows for part in parts}
        return self._found[number][name]


#: The tables of each section, in their order.
NAMES = (
    ("final", "emergence", "acquisition", "nouns", "mixed", "training"), ("r2-peak", "r2"), ("saliency", "lens"),
    ("head-counts", "common-heads", "stability", "shares", "strongest", "flow-effect"),
    ("interventions", "study", "grounds"), ("monitor", "steering"),
)  # fmt: skip


@pytest.fixture(scope="session")
def sheets(study: StudyResults) -> PageTables:
    return PageTables(study)
