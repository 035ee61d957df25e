"""The report: one self-contained HTML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from symground.analysis.results import TABLES, read_table
from symground.folders import read_json
from symground.reports import figures, tables
from symground.reports.template import render


def report(study: str | Path) -> Path:
    """Write ``report.html`` into a study's folder from its result tables, and return its path.

    What has not been analysed yet is named in the page. Every word of the corpus is escaped.

    Raises:
        FileNotFoundError: the folder is not a study, or none of its tables exists yet.
    """
    study = Path(study)
    if not (study / "config.json").is_file() or not (study / "data").is_dir():
        raise FileNotFoundError(f"{study} is not a study: it has no config.json beside a data/ folder")
    config = read_json(study / "config.json")
    results = {name: read_table(study, name) for name in TABLES}
    missing = [name for name in TABLES if results[name].empty]
    if len(missing) == len(TABLES):
        raise FileNotFoundError(f"{study} has no results yet; run: symground analyze {study}")
    examples = len(config["nouns"]) * len(config["contexts"])
    page = render(
        "page.html.jinja",
        name=study.name,
        config=config,
        statistics=read_json(study / "data" / "statistics.json"),
        missing=missing,
        study_table=tables.STUDY_INTERVENTIONS,
        **_sections(results, examples),
    )
    path = study / "report.html"
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def _sections(results: dict[str, pd.DataFrame], examples: int) -> dict[str, Any]:
    """The page's figures and tables, None where the analysis has not been run."""
    gains, r2, saliency, heads = (results[name] for name in ("gain", "r2", "saliency", "heads"))
    sections: dict[str, Any] = dict.fromkeys(
        ("final", "curves", "gain", "r2", "saliency", "counts", "common", "interventions", "grounds", "strongest")
    )
    if not gains.empty:
        sections["final"] = tables.final_gains(gains)
        sections["curves"] = Markup(figures.surprisal_curves(gains))
        sections["gain"] = Markup(figures.gain_curves(gains))
    if not r2.empty and not gains.empty:
        sections["r2"] = Markup(figures.r2_curves(r2, gains))
    if not saliency.empty:
        sections["saliency"] = Markup(figures.saliency_layers(saliency))
    if not heads.empty:
        counts = tables.head_counts(heads, examples)
        shown = sorted(counts["step"].unique())
        shown = [shown[round(i * (len(shown) - 1) / 4)] for i in range(5)]
        sections["counts"] = counts[counts["step"].isin(shown)]
        sections["common"] = tables.common_heads(heads, examples)
    if not results["interventions"].empty:
        sections["interventions"] = tables.intervention_table(results["interventions"])
        grounds = tables.grounds_or_matters(results["interventions"])
        sections["grounds"] = None if grounds.empty else grounds
    if not results["sweep"].empty:
        sections["strongest"] = tables.strongest_heads(results["sweep"])
    return sections
