"""The report: one self-contained HTML file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from symground.data.words import age_of_acquisition
from symground.errors import WrongUsageError, check_path, check_types, flag
from symground.files import make_folder, replacing
from symground.reports.figures import write_figures
from symground.reports.formats import corpus_size
from symground.reports.pages.example import example_of
from symground.reports.pages.explorer import explorer
from symground.reports.pages.findings import caution, findings_of
from symground.reports.pages.provenance import commands, corpus_of, page_made_by, runs_table
from symground.reports.sections import beside, sections_of
from symground.reports.sections.parts import StudyResults
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
        maps, example = None, None
        file = Path(out or "compare.html")
    else:
        (study,) = studies
        sections = sections_of(study, ages)
        heading, lead = f"Symbol grounding in {study.name}", _lead(study)
        maps, example = explorer(study), example_of(study.config)
        if maps is None:
            missing = study.lacking(maps="single examples to look at")
            sections = [replace(s, missing=[*s.missing, *missing]) if s.name == "heads" else s for s in sections]
        file = Path(out or Path(path) / "report.html")
    elsewhere = bool(studies[0].pretrained) and not others
    page = render(
        "study.html.jinja", name=" · ".join(study.name for study in studies), heading=heading, lead=lead,
        findings=findings_of(sections, elsewhere), caution=caution(sections, elsewhere), example=example,
        pretrained=elsewhere,
        sections=sections, maps=maps,
        sources=[(s, corpus_of(s), *runs_table(s), commands(s)) for s in studies],
        made_by=page_made_by(),
    )  # fmt: skip
    if figures:
        drawn = [(part.name, part.figure) for section in sections for part in section.figures]
        write_figures(drawn, file.parent / "figures")
    with replacing(file) as partial:
        partial.write_text(page, encoding="utf-8")
    return file


def summary(path: str | Path) -> list[str]:
    """The findings at the top of a study's page: a sentence per finding and model."""
    study = StudyResults.read(path)
    return [f.text for f in findings_of(sections_of(study), elsewhere=bool(study.pretrained))]


def _lead(study: StudyResults) -> str:
    statistics = study.statistics
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
