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
from symground.disk import make_folder
from symground.folders import read_json, replacing
from symground.reports.explorer import explorer
from symground.reports.figures import write_figures
from symground.reports.formats import control_cell, corpus_size, number, with_interval
from symground.reports.parts import Section, Sheet, Study, last_checkpoints
from symground.reports.sections import SECTIONS, behaviour, beside
from symground.reports.template import render
from symground.typed import WrongUsageError


def report(
    path: str | Path,
    *others: str | Path,
    out: str | Path | None = None,
    figures: bool = False,
    acquisition: str | Path | None = None,
) -> Path:
    """Write the page of a study or a run from its result tables, or one that compares several; return its path.

    It needs no network and no other file. What has not been analysed yet is named in it, with the command that does.
    Every word of the corpus is escaped.

    Args:
        path: a study's folder, or a run's.
        others: more of them, to stand beside the first.
        out: the file; ``report.html`` in the folder by default, and for a comparison ``compare.html`` in this one.
        figures: also write each figure as PNG (300 dots an inch) and PDF, into a folder ``figures`` beside the file.
        acquisition: Wordbank's table of the proportion of children who say a word by month, to set emergence against.

    Raises:
        FileNotFoundError: a folder is neither a study nor a run, or has no results yet; no such table.
        ValueError: no path, or the table of children has not the columns that it should.
    """
    for each in (path, *others):
        if not isinstance(each, (str, Path)):
            raise ValueError(f"path: expected the folder of a study or a run, got {type(each).__name__}")
    ages = None if acquisition is None else age_of_acquisition(acquisition)
    studies = [Study.read(each) for each in (path, *others)]
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
        "page.html.jinja", name=" · ".join(study.name for study in studies), heading=heading, lead=lead,
        summary=summary, sections=sections, maps=maps, studies=studies,
    )  # fmt: skip
    if figures:
        drawn = [(picture.name, picture.figure) for section in sections for picture in section.pictures]
        write_figures(drawn, file.parent / "figures")
    with replacing(file) as partial:
        partial.write_text(page, encoding="utf-8")
    return file


def summary(path: str | Path) -> list[str]:
    """What the page of a study says first, a sentence per finding and model."""
    study = Study.read(path)
    return _summary(study, [behaviour(study, None), *(section(study) for section in SECTIONS)])


def _with(section: Section, missing: Sequence[str]) -> Section:
    return Section(section.name, section.title, section.text, section.parts, [*section.missing, *missing])


def _lead(study: Study) -> str:
    statistics = read_json(study.folder / "data" / "statistics.json")
    nouns, contexts = study.config["nouns"], study.config["contexts"]
    assert isinstance(nouns, list)
    assert isinstance(contexts, list)
    asked = study.config.get("asked")
    lacking = ""
    if isinstance(asked, dict):
        lacking = "".join(
            f" {asked[name] - len(there)} of the {asked[name]} {name} that were asked for {why}."
            for name, there, why in (
                ("nouns", nouns, "stand too seldom in the corpus to be probed"),
                ("contexts", contexts, "have words that its vocabulary lacks"),
            )
            if asked[name] > len(there)
        )
    size = f"{corpus_size(statistics)}; vocabulary {statistics['vocabulary']:,}"
    return f"{size}; {len(nouns)} nouns × {len(contexts)} contexts.{lacking}"


def _summary(study: Study, sections: Sequence[Section]) -> list[str]:
    """What a reader takes away, a line per finding and model; nothing that a table below does not say."""
    frames = {part.name: part.frame for section in sections for part in section.parts if isinstance(part, Sheet)}
    lines = []
    for row in _rows(frames, "final"):
        gain = with_interval(row["gain"], row["gain_low"], row["gain_high"])
        emerged = _one(frames, "emergence", model=row["model"], level="model")
        when = "" if emerged is None else (
            f"; above 1 nat for good from step {emerged['step']:,.0f}" if np.isfinite(emerged["step"])
            else "; it does not stay above 1 nat"
        )  # fmt: skip
        seeds = f"{row['seeds']} seed{'s' if row['seeds'] > 1 else ''}"
        lines.append(
            f"{row['model']}: the scene is worth {gain} nats of the noun's surprisal at step {row['step']:,} "
            f"({row['nouns']} nouns, {seeds}){when}."
        )
    lines += [
        f"{row['model']}: co-occurrence explains {row['peak']:.0%} of the variance of the gain at its peak "
        f"(step {row['peak_step']:,.0f}) and {row['last']:.0%} at the end."
        for row in _rows(frames, "r2-peak")
        if pd.notna(row["peak"])
    ]
    table = frames.get("interventions")
    if table is not None:
        chosen = table[(table["kind"] == "aggregate") & (table["denominator"] == "row")]
        last = last_checkpoints(chosen)
        lines += [
            f"{row['model']}, seed {row['seed']}: each example's own aggregate heads silenced take the matched "
            f"surprisal from {number(row['original'])} to {number(row['intervened'])}{_beside_random(row)}."
            for row in last.drop_duplicates(["model", "seed"]).to_dict("records")
        ]
    return lines


def _beside_random(row: Mapping[Any, Any]) -> str:
    """What goes on the sentence about silenced heads."""
    if not enough(row["short"], row["examples"]):
        return f"; in {row['short']} of {row['examples']} examples too few other heads are left to compare them with"
    return f", as many random heads to {control_cell(row)}"


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
    """The file; report.html in the folder by default, for several compare.html here."""
    figures: bool = False
    """Also write every figure as PNG and PDF, into a folder "figures" beside the page."""
    acquisition: str | None = None
    """Wordbank's table of the proportion of children who say each word by month, to set emergence against."""

    def run(self) -> Path:
        if not self.paths:
            raise WrongUsageError("PATHS: expected folders of studies or runs; got nothing")
        if self.out is not None:  # what cannot be written is told before the work
            if Path(self.out).is_dir():
                raise WrongUsageError(f"out: expected a file, got the folder {self.out}")
            make_folder(Path(self.out).parent)
        return report(*self.paths, out=self.out, figures=self.figures, acquisition=self.acquisition)
