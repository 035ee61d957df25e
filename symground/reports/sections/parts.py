"""The parts of a report: sections with figures and tables, each with its caption and the command that made it."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from symground.analysis import results as of_study
from symground.analysis.run import ANALYSES
from symground.analysis.statistics import over_training
from symground.files import model_and_seed, read_json, study_of
from symground.reports.figures import svg_of
from symground.reports.formats import csv_of, table_html
from symground.reports.sections.captions import FIGURES, TABLES, caption


@dataclass(frozen=True)
class FigurePart:
    """A figure."""

    name: str
    """Its name in the page and in `FIGURES`, and the name of its file."""
    figure: Figure
    command: str
    words: Mapping[str, object] = field(default_factory=dict)
    """The values of the fields of its caption."""
    of_training: bool = True
    """Whether its caption may speak of checkpoints and seeds."""

    @property
    def caption(self) -> str:
        return caption(FIGURES, self.name, self.of_training).format(**self.words)

    @property
    def wide(self) -> bool:
        """Whether it is too wide for the screen of a phone."""
        return bool(self.figure.get_figwidth() > 6)

    @property
    def svg(self) -> Markup:
        return Markup(svg_of(self.figure, self.name))


@dataclass(frozen=True)
class TablePart:
    """A table, which can also be downloaded."""

    name: str
    frame: pd.DataFrame
    """The table for the download: all rows, unrounded."""
    command: str
    shown: pd.DataFrame | None = None
    """The table for the page; None if it is the same."""
    note: str = ""
    """What its caption says of these rows."""
    words: Mapping[str, object] = field(default_factory=dict)
    """The values of the fields of its caption."""
    of_training: bool = True
    """Whether its caption may speak of checkpoints and seeds."""

    @property
    def caption(self) -> str:
        return f"{caption(TABLES, self.name, self.of_training).format(**self.words)} {self.note}".rstrip()

    @property
    def html(self) -> Markup:
        return table_html(self.frame if self.shown is None else self.shown)

    @property
    def rows(self) -> int:
        """The number of rows on the page."""
        return len(self.frame if self.shown is None else self.shown)

    @property
    def tall(self) -> bool:
        """Whether it is folded on the page."""
        return self.rows > 14

    @property
    def csv(self) -> str:
        """The table as a data: URL of a CSV file."""
        text = csv_of(self.frame).encode()
        return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text).decode()}"


@dataclass(frozen=True)
class Section:
    """A question, and the figures and tables that answer it."""

    name: str
    title: str
    text: str
    parts: Sequence[FigurePart | TablePart]
    missing: Sequence[str] = ()
    """Results that have not been computed, each with the command that computes it."""

    @property
    def figures(self) -> list[FigurePart]:
        return [part for part in self.parts if isinstance(part, FigurePart)]


class Results:
    """The tables of a study, or their rows of one run. Each table is read when it is first used."""

    def __init__(self, folder: Path, run: tuple[str, int] | None) -> None:
        self._folder, self._tables = folder, dict[str, pd.DataFrame]()
        self._only: dict[str, list[Any]] = {} if run is None else {"model": [run[0]], "seed": [run[1]]}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._tables:
            self._tables[name] = of_study.read_table(self._folder, name, **self._only)
        return self._tables[name]

    def lacks(self, name: str) -> bool:
        """Whether the table is not there. A large one is not read for that."""
        if name in _LONG:
            return not (of_study.results_folder(self._folder) / f"{name}.parquet").is_file()
        return self[name].empty

    def at(self, name: str, steps: Sequence[int]) -> pd.DataFrame:
        """The rows of a table at some checkpoints."""
        return of_study.read_table(self._folder, name, **self._only, step=steps)


#: Tables with a row for each score or for each head of an example. They are too large to be read as a whole.
_LONG = ("surprisal", "heads")


@dataclass(frozen=True)
class StudyResults:
    """The results of a study, or of one run of it."""

    folder: Path
    name: str
    config: Mapping[str, object]
    results: Results = field(repr=False)
    place: str
    """Its path in the commands of the page: the path that was given, or the name if that path is absolute."""

    @staticmethod
    def read(path: str | Path) -> StudyResults:
        """Read the folder of a study or of a run.

        Raises:
            FileNotFoundError: the folder is neither, or none of its tables exists yet.
        """
        path, run = Path(path), None
        folder = path
        if not (path / "data").is_dir() and (path / "checkpoints").is_dir():
            folder, run = study_of(path), model_and_seed(path)
        if not (folder / "config.json").is_file() or not any((folder / part).is_dir() for part in ("data", "results")):
            raise FileNotFoundError(f"{folder} is not a study: it has no config.json beside a data/ or results/ folder")
        results = Results(folder, run)
        if all(results[name].empty for name in of_study.TABLES if name not in _LONG):
            raise FileNotFoundError(f"{path} has no results yet; run: symground analyze {path}")
        name = folder.name if run is None else f"{folder.name}/{run[0]}/seed{run[1]}"
        place = name if path.is_absolute() else path.as_posix()
        return StudyResults(folder, name, read_json(folder / "config.json"), results, place)

    @cached_property
    def training(self) -> pd.DataFrame:
        """The gain over training, with its intervals and tests; computed once for all sections."""
        return over_training(self.results["gain"])

    @property
    def pretrained(self) -> str:
        """The name of the model that was trained elsewhere, or the last part of its path; empty for a study."""
        named = str(self.config.get("pretrained") or "")
        return Path(named).name if Path(named).is_absolute() else named

    @property
    def command(self) -> str:
        """The command that asked the model that was trained elsewhere; empty if it was not recorded.

        Of the machine's own paths it has the last parts, as all of the page.
        """
        try:
            words = shlex.split(str(self.config.get("command") or "")) if self.pretrained else []
        except ValueError:  # edited by hand
            return ""
        return shlex.join(Path(word).name if Path(word).is_absolute() else word for word in words)

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """The content of the corpus's statistics.json; empty if the study has no corpus."""
        path = self.folder / "data" / "statistics.json"
        return read_json(path) if path.is_file() else {}

    @cached_property
    def runs(self) -> list[tuple[str, int]]:
        """The models and seeds that have results."""
        found: set[tuple[str, int]] = set()
        for name in of_study.TABLES:
            if name not in _LONG:
                found |= set(self.results[name][["model", "seed"]].itertuples(index=False, name=None))
        return sorted((str(model), int(seed)) for model, seed in found)

    @property
    def contexts(self) -> pd.DataFrame:
        """The contexts of its probes, for the page."""
        contexts = self.config["contexts"]
        assert isinstance(contexts, list)
        rows = [(number, *context[:2]) for number, context in enumerate(contexts)]
        return pd.DataFrame(rows, columns=["context", "ENV sentence", "LAN words"])

    def analyze(self, what: str) -> str:
        """The command that fills the tables of an analysis."""
        if self.command:
            return f"{_without(self.command, ('--what', '--again', '--plan'))} --what {what}"
        if self.pretrained:
            return f"symground probe {self.pretrained} --out {self.place} --what {what}"
        return f"symground analyze {self.place} --what {what}"

    def _analyze_for(self, table: str) -> str:
        """The command that fills a table that is not there, also if its analysis counts as done."""
        what = _MADE_BY[table]
        return self.analyze(what) + ("" if self.results.lacks(ANALYSES[what][-1]) else " --again")

    def lacking(self, **analyses: str) -> list[str]:
        """Texts for the missing tables among ``analyses`` (table → what it shows), each with its command."""
        return [f"{text} ({self._analyze_for(name)})" for name, text in analyses.items() if self.results.lacks(name)]


_MADE_BY = {table: analysis for analysis, tables in ANALYSES.items() for table in tables}


def _without(command: str, options: Sequence[str]) -> str:
    """The command without some options and their values."""
    kept, dropped = list[str](), False
    for word in shlex.split(command):
        if word.startswith("--"):
            dropped = word.partition("=")[0].replace("--no-", "--") in options
        if not dropped:
            kept.append(word)
    return shlex.join(kept)


def has_training(frame: pd.DataFrame) -> bool:
    """Whether some model has several checkpoints, so that there is something to draw over training."""
    return bool((frame.groupby("model")["step"].nunique() > 1).any())


def last_checkpoints(frame: pd.DataFrame, *of: str) -> pd.DataFrame:
    """The rows of each run's last checkpoint, or of the last checkpoint of each group by the columns ``of``."""
    return frame[frame["step"] == frame.groupby(list(of) or ["model", "seed"])["step"].transform("max")]
