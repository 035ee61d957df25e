"""Runs the analyses of models one after the other, and saves their tables as they come."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from symground.analysis.results import TABLES, Table
from symground.analysis.run.analyses import RUN, Subject
from symground.analysis.run.settings import ANALYSES
from symground.models import mixers
from symground.running import progress

_SAVE_EVERY = 20.0  # seconds of work that an interruption may lose, beside the analysis that is running
#: The tables that mark an analysis as done. They are saved last, so an analysis that was interrupted is repeated.
_LAST = frozenset(tables[-1] for tables in ANALYSES.values())


def measure(label: str, study: Path, due: Sequence[tuple[Subject, Sequence[str]]]) -> int:
    """Fill the tables of a study with the analyses that are due; those that the tables have are not repeated.

    Args:
        label: of the progress bar.
        study: its folder.
        due: subjects, each with the names of its analyses.

    Returns:
        The number of analyses that were skipped because the tables already have them.
    """
    tables = {name: Table(study, name) for name in TABLES}
    saved, left, partial = time.monotonic(), 0, list[Path]()
    with progress(label, sum(len(names) for _, names in due), alike=False) as bar:
        try:
            for subject, names in due:
                for name in names:
                    needs_heads, analysis = RUN[name]
                    bar.note(name)
                    key = subject.name, subject.seed, subject.step
                    if tables[ANALYSES[name][-1]].has(*key) and not subject.settings.again:
                        left += 1
                    elif not needs_heads or mixers(subject.model):
                        frames = analysis(subject)
                        for table in sorted(frames, key=_LAST.__contains__):
                            tables[table].add(frames[table], *key)
                        partial += {"surprisal": [subject.scores], "interventions": [subject.intervened]}.get(name, [])
                    if time.monotonic() - saved > _SAVE_EVERY:
                        _save(tables, partial)
                        saved = time.monotonic()
                    bar.advance()
                vars(subject).pop("model", None)  # one model in memory at a time
        finally:
            _save(tables, partial)
    return left


def _save(tables: Mapping[str, Table], partial: list[Path]) -> None:
    """Save the tables, and remove the folders of what they now have."""
    for name in sorted(tables, key=_LAST.__contains__):
        tables[name].save()
    for folder in partial:
        shutil.rmtree(folder, ignore_errors=True)
    partial.clear()
