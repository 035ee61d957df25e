"""The report: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro

from symground.analysis.causal import enough
from symground.data.words import age_of_acquisition
from symground.errors import WrongUsageError, check_path, check_types, flag
from symground.files import make_folder, read_json, replacing
from symground.reports.figures import write_figures
from symground.reports.formats import control_cell, corpus_size, number, with_interval
from symground.reports.pages.explorer import explorer
from symground.reports.sections import SECTIONS, behaviour, beside
from symground.reports.sections.parts import Section, StudyResults, TablePart, last_checkpoints
from symground.reports.template import render


def report(
    path: str | Path,
    *others: str | Path,
    out: str | Path | None = None,
    figures: bool = False,
    acquisition: str | Path | None = None,
) -> Path:
    """Write the page of a study or a run from its result tables, or a page that compares several; returns its path.

    The page needs no network and no other file. If an analysis has not been run, the page says so and gives the command
    that runs it. Every word of the corpus is escaped.

    Args:
        path: the folder of a study or a run.
        others: more such folders, to compare with the first.
        out: the file. The default is ``report.html`` in the folder, and for a comparison ``compare.html`` in the
            current folder.
        figures: also write each figure as PNG (300 dots per inch) and PDF, into a folder ``figures`` beside the file.
        acquisition: Wordbank's table of the proportion of children who say each word, by month. Emergence steps are
            compared with the age of acquisition.

    Raises:
        FileNotFoundError: a folder is neither a study nor a run, or has no results yet; or there is no such table.
        ValueError: a path is not one, or Wordbank's table lacks a column.
    """
    for each in (path, *others):
        if not isinstance(each, (str, Path)):
            raise ValueError(f"path: expected the folder of a study or a run, got {type(each).__name__}")
    figures = flag("figures", figures)
    for name, file_name in (("out", out), ("acquisition", acquisition)):
        if file_name is not None:
            check_path(file_name, name)
    ages = None if acquisition is None else age_of_acquisition(acquisition)
    studies = [StudyResults.read(each) for each in (path, *others)]
    if others:
        sections = [beside(studies)]
        heading, lead = "Symbol grounding, side by side", " · ".join(study.name for study in studies)
        summary: list[str] = []
        maps = None
        file = Path(out or "compare.html")
    else:
        (study,) = studies
        sections = [behaviour(study, ages), *(section(study) for section in SECTIONS)]
        heading, lead, summary = f"Symbol grounding in {study.name}", _lead(study), _summary(study, sections)
        maps = explorer(study)
        if maps is None:
            missing = study.lacking(maps="single examples to look at")
            sections = [s if s.name != "heads" else _with(s, missing) for s in sections]
        file = Path(out or Path(path) / "report.html")
    page = render(
        "study.html.jinja", name=" · ".join(study.name for study in studies), heading=heading, lead=lead,
        summary=summary, sections=sections, maps=maps, studies=studies,
    )  # fmt: skip
    if figures:
        drawn = [(part.name, part.figure) for section in sections for part in section.figures]
        write_figures(drawn, file.parent / "figures")
    with replacing(file) as partial:
        partial.write_text(page, encoding="utf-8")
    return file


def summary(path: str | Path) -> list[str]:
    """The summary at the top of a study's page: a sentence per finding and model."""
    study = StudyResults.read(path)
    return _summary(study, [behaviour(study, None), *(section(study) for section in SECTIONS)])


def _with(section: Section, missing: Sequence[str]) -> Section:
    return Section(section.name, section.title, section.text, section.parts, [*section.missing, *missing])


def _lead(study: StudyResults) -> str:
    path = study.folder / "data" / "statistics.json"
    statistics = read_json(path) if path.is_file() else {}
    nouns, contexts = study.config["nouns"], study.config["contexts"]
    assert isinstance(nouns, list)
    assert isinstance(contexts, list)
    asked = study.config.get("asked")
    lacking = ""
    if isinstance(asked, dict):
        lacking = "".join(
            f" {asked[name] - len(there)} of the {asked[name]} requested {name} {why}."
            for name, there, why in (
                ("nouns", nouns, "are too rare in the corpus to be probed"),
                ("contexts", contexts, "have words that are not in its vocabulary"),
            )
            if asked[name] > len(there)
        )
    size = f"{corpus_size(statistics)}; vocabulary {statistics['vocabulary']:,}; " if statistics else ""
    return f"{size}{len(nouns)} nouns × {len(contexts)} contexts.{lacking}"


def _summary(study: StudyResults, sections: Sequence[Section]) -> list[str]:
    """A sentence per finding and model; all of its numbers are in the tables of the page."""
    frames = {part.name: part.frame for section in sections for part in section.parts if isinstance(part, TablePart)}
    lines = []
    for row in _rows(frames, "final"):
        gain = with_interval(row["gain"], row["gain_low"], row["gain_high"])
        emerged = _one(frames, "emergence", model=row["model"], level="model")
        when = "" if emerged is None else (
            f" The gain stays above 1 nat from step {emerged['step']:,.0f} on." if np.isfinite(emerged["step"])
            else " The gain does not stay above 1 nat."
        )  # fmt: skip
        seeds = f"{row['seeds']} seed{'s' if row['seeds'] > 1 else ''}"
        lines.append(
            f"{row['model']}: at step {row['step']:,}, a noun's surprisal is {gain} nats lower if the scene has this "
            f"noun than if it has another ({row['nouns']} nouns, {seeds}).{when}"
        )
    lines += [
        f"{row['model']}: co-occurrence explains at most {row['peak']:.0%} of the gain's variance over nouns "
        f"(step {row['peak_step']:,.0f}), and {row['last']:.0%} at the last checkpoint."
        for row in _rows(frames, "r2-peak")
        if pd.notna(row["peak"])
    ]
    table = frames.get("interventions")
    if table is not None:
        chosen = table[(table["kind"] == "aggregate") & (table["denominator"] == "row")]
        last = last_checkpoints(chosen)
        lines += [
            f"{row['model']}, seed {row['seed']}: silencing each example's own aggregate heads changes the matched "
            f"surprisal from {number(row['original'])} to {number(row['intervened'])} nats{_beside_random(row)}."
            for row in last.drop_duplicates(["model", "seed"]).to_dict("records")
        ]
    return lines


def _beside_random(row: Mapping[Any, Any]) -> str:
    """The end of the sentence about silenced heads."""
    if not enough(row["short"], row["examples"]):
        return f"; in {row['short']} of {row['examples']} examples too few other heads are left for a comparison"
    return f", and silencing as many random heads to {control_cell(row)}"


def _rows(frames: dict[str, pd.DataFrame], name: str) -> list[dict[Hashable, Any]]:
    if name not in frames:
        return []
    frame = frames[name]
    if name == "final":
        frame = last_checkpoints(frame, "model")
    return frame.to_dict("records")


def _one(frames: dict[str, pd.DataFrame], name: str, **wanted: object) -> dict[Hashable, Any] | None:
    found = [row for row in _rows(frames, name) if all(row[key] == value for key, value in wanted.items())]
    return found[0] if found else None


@dataclass(frozen=True)
class Report:
    """``symground report``."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Folders of studies or of runs."""
    out: str | None = None
    """The file; by default report.html in the folder, or compare.html in the current folder for several paths."""
    figures: bool = False
    """Also write every figure as PNG and PDF, into a folder "figures" beside the page."""
    acquisition: str | None = None
    """Wordbank's table of the proportion of children who say each word, by month; emergence is compared with it."""

    def __post_init__(self) -> None:
        check_types(self)

    def run(self) -> Path:
        if not self.paths:
            raise WrongUsageError("PATHS: expected folders of studies or runs; got nothing")
        if self.out is not None:  # refuse a wrong path before the work begins
            if Path(self.out).is_dir():
                raise WrongUsageError(f"out: expected a file, got the folder {self.out}")
            make_folder(Path(self.out).parent)
        return report(*self.paths, out=self.out, figures=self.figures, acquisition=self.acquisition)
