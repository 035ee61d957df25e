"""If an analysis is stopped at any line, by an interrupt or by a kill, repeating the call completes the same tables."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest

import symground as sg
from symground.analysis import results
from symground.analysis.probing import scoring
from symground.analysis.run import AnalysisSettings, analyze, checkpoints, measuring
from symground.data import Corpus
from symground.files import disk
from symground.models import create


class Lines:
    """Records the executed lines of some files, and interrupts at one of them.

    With ``killed``, every later line is interrupted too, so that nothing is cleaned up or saved.
    """

    def __init__(self, files: tuple[ModuleType, ...], stop: int | None = None, killed: bool = False) -> None:
        self._files, self._stop, self._killed = {str(file.__file__) for file in files}, stop, killed
        self.seen: list[tuple[str, int]] = []

    def run(self, what: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            what()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)

    def _called(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self.seen.append((frame.f_code.co_filename, frame.f_lineno))
            if self._stop is not None and (n := len(self.seen) - 1) >= self._stop and (self._killed or n == self._stop):
                if not self._killed:
                    sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


def stops(what: Callable[[], object], files: tuple[ModuleType, ...]) -> list[int]:
    """The places to stop: each line at its first and at its last execution."""
    lines = Lines(files)
    lines.run(what)
    first = {line: i for i, line in reversed(list(enumerate(lines.seen)))}
    last = {line: i for i, line in enumerate(lines.seen)}
    return sorted({*first.values(), *last.values()})


@pytest.mark.parametrize("killed", [False, True])
def test_scores_are_written_once(corpus: Corpus, tmp_path: Path, killed: bool) -> None:
    model = create("lstm-1l", len(corpus.tokenizer)).eval()
    probes = sg.probes(corpus.tokenizer, ["book", "ball"]).take_contexts(range(3))
    pairs = probes.pairs.shape

    def scan(_: Any, asked: sg.Probes, *__: Any) -> Iterator[tuple[int, np.ndarray]]:
        for context in reversed(range(len(asked.contexts))):
            yield context, np.full(pairs, len(asked.contexts[context].lan), dtype=np.float32)

    def score(folder: Path) -> Path:
        with mock.patch.object(scoring, "scan", scan), mock.patch.object(scoring, "_FLUSH_ROWS", 1):
            return sg.score_to_parquet(model, probes, folder)

    columns = ["context", "env", "target"]
    points = stops(lambda: score(tmp_path / "whole"), (scoring, disk))
    expected = pd.read_parquet(tmp_path / "whole").sort_values(columns, ignore_index=True)
    assert len(expected) == 3 * 4
    assert len(points) > 100
    for line in points:
        folder = tmp_path / f"{line}"
        Lines((scoring, disk), line, killed).run(lambda: score(folder))  # noqa: B023 (called at once)
        if any(folder.glob("part-*")):
            kept = pd.read_parquet(folder)
            assert not kept.duplicated(columns).any(), f"at line {line}"
        found = pd.read_parquet(score(folder)).sort_values(columns, ignore_index=True)
        pd.testing.assert_frame_equal(found, expected)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_tables_of_one_analysis_are_all_there(
    corpus: Corpus, tmp_path: Path, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table that marks a checkpoint as analysed is written after the other tables of the analysis."""
    tables = {"surprisal": ("contexts", "r2", "gain"), "saliency": ("heads", "saliency")}

    def found(at: Any, names: tuple[str, ...]) -> dict[str, pd.DataFrame]:
        return {name: pd.DataFrame({"value": [float(at.step + len(name))]}) for name in names}

    fakes = {name: (False, lambda at, names=names: found(at, names)) for name, names in tables.items()}
    monkeypatch.setattr(measuring, "RUN", fakes)
    monkeypatch.setattr(measuring, "_SAVE_EVERY", -1.0)
    probes, counts = sg.probes(corpus.tokenizer, ["book", "ball"]), pd.DataFrame()

    def study(folder: Path) -> Path:
        for step in (5,):
            (folder / "lstm-1l" / "seed0" / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        return folder

    def analysed(folder: Path) -> dict[str, pd.DataFrame]:
        what = AnalysisSettings(what=tuple(tables))
        analyze(folder / "lstm-1l" / "seed0", probes, counts, what)
        return {name: results.read_table(folder, name) for names in tables.values() for name in names}

    points = stops(lambda: analysed(study(tmp_path / "whole")), (measuring, checkpoints, results, disk))
    expected = analysed(tmp_path / "whole")
    assert all(len(table) for table in expected.values())
    assert len(points) > 100
    for line in points:
        folder = study(tmp_path / f"{line}")
        Lines((measuring, checkpoints, results, disk), line, killed).run(lambda: analysed(folder))  # noqa: B023 (called at once)
        for name, table in analysed(folder).items():
            pd.testing.assert_frame_equal(table, expected[name])
        shutil.rmtree(folder, ignore_errors=True)
