"""Sweeps: seeds × models × corpora, then checkpoints × analyses, as parallel jobs on one machine or a cluster."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import transformers
import tyro

from symground.analysis.results import read_table
from symground.analysis.run import AnalysisSettings, analyze, checkpoints_of
from symground.errors import choice, integer
from symground.files import checkpoint_steps, write_json, write_text
from symground.recipes.dials import turned, values_of
from symground.recipes.prepare import check_named, prepare
from symground.recipes.study import StudySettings, study_counts, study_probes, train_study
from symground.reports import report
from symground.reports.comparisons.dials import curves, markdown, summary
from symground.running import BACKENDS, Job, run_jobs
from symground.training import Hardware, Optimization

CORPUS = "corpus"
#: Analyses that are quick, so that one job runs them on several checkpoints.
_QUICK = ("surprisal", "saliency")


@dataclass(frozen=True)
class SweepSettings(StudySettings):
    """The combinations of a sweep, and where it runs."""

    seeds: int = field(default=3)
    """Runs of each model on each corpus, with the seeds 0, 1, …"""
    dials: tuple[str, ...] = ()
    """Dials of a generated corpus and their values, such as gap=0,4,12; each combination is a study."""
    jobs: int = 1
    """Number of jobs in parallel, each a process with --threads threads (one by default)."""
    backend: str = "processes"
    """Where jobs execute: "processes" of this machine, or "ray", a cluster whose machines share the folder."""
    checkpoints_per_job: int = 10
    """Number of checkpoints of a run that one job analyses."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("backend", self.backend, BACKENDS)
        for name in ("jobs", "checkpoints_per_job"):
            integer(name, getattr(self, name), 1)
        self.studies()

    def studies(self) -> dict[str, SweepSettings]:
        """name → the settings of its study.

        Raises:
            ValueError: an unknown dial, a duplicate one, or a value that it does not take.
        """
        if not self.dials:
            return {CORPUS: self}
        chosen: dict[str, list[object]] = {}
        for text in self.dials:
            dial, mark, values = text.partition("=")
            if not mark or dial in chosen:
                raise ValueError(f"dials: expected each dial once, as NAME=VALUE,VALUE; got {text!r}")
            chosen[dial] = values_of(dial, values.split(","))
        found = {}
        for combination in itertools.product(*chosen.values()):
            own = replace(self, dials=())
            for dial, value in zip(chosen, combination, strict=True):
                own = turned(own, dial, value)
            name = "_".join(f"{dial}-{value}" for dial, value in zip(chosen, combination, strict=True))
            found[name] = own
        return found


def run_sweep(corpus: Sequence[str], out: str | Path, settings: SweepSettings) -> Path:
    """Prepare, train, analyse and report every combination; returns the folder.

    Each OUT/NAME is a study like any other, OUT/jobs has a record of every job's outcome, and OUT/sweep.md, .json and
    .svg show the gain of all studies. Repeating the call resumes the work.

    Args:
        corpus: as for :func:`symground.recipes.prepare.prepare`.
        out: the folder.
        settings: the combinations.

    Raises:
        ValueError: dials for a corpus that has none.
        RuntimeError: some jobs failed (the message has each with its error); the others are in the tables.
    """
    out = Path(out).resolve()
    studies = {name: out / name for name in settings.studies()}
    if settings.dials and not corpus[0].startswith("generated"):
        raise ValueError(f"dials: only generated corpora have some, got {' '.join(corpus)}")
    for name, own in settings.studies().items():
        prepare(corpus, studies[name], own)
    failed = train_and_analyze(settings, studies, out / "jobs")
    for study in studies.values():
        if len(read_table(study, "gain")):
            report(study)
    _write(out, settings, studies)
    raise_failed(failed)
    return out


def train_and_analyze(settings: SweepSettings, studies: Mapping[str, Path], records: Path) -> dict[str, str]:
    """Train every run of every study, then run every analysis of every checkpoint; finished work is skipped.

    Args:
        settings: of training and analyses.
        studies: name → the folder of a prepared study.
        records: folder for a record of each job's outcome.

    Returns:
        The jobs that failed: name → error.
    """
    failed = run_jobs(_training(settings, studies), records, settings.jobs, settings.backend)
    return failed | run_jobs(_analysing(settings, studies), records, settings.jobs, settings.backend)


def raise_failed(failed: Mapping[str, str]) -> None:
    """Raise a RuntimeError that names each failed job with its error, if there is one."""
    if failed:
        listed = "; ".join(f"{job}: {error}" for job, error in failed.items())
        raise RuntimeError(f"{len(failed)} of the jobs failed, the others are done: {listed}")


def _runs(settings: SweepSettings, studies: Mapping[str, Path]) -> Iterator[tuple[str, Path, str, int]]:
    """(name, study, model, seed); all models have one seed before any has a second."""
    for seed in range(settings.seeds):
        for name, study in studies.items():
            for model in settings.models:
                yield name, study, model, seed


def _training(settings: SweepSettings, studies: Mapping[str, Path]) -> dict[str, Job]:
    how = (settings.hardware, settings.threads or 1)
    own = {model: settings.optimization.of_model(model, settings.learning_rates) for model in settings.models}
    return {
        f"train {name}, {model}, seed {seed}": partial(_train, study, model, seed, own[model], *how)
        for name, study, model, seed in _runs(settings, studies)
    }


def _analysing(settings: SweepSettings, studies: Mapping[str, Path]) -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    for name, study, model, seed in _runs(settings, studies):
        steps = checkpoint_steps(study / model / f"seed{seed}")
        if settings.optimization.steps not in steps:
            continue  # its training failed
        for what in settings.analysis.what:
            chosen = checkpoints_of(what, steps, settings.analysis)
            size = settings.checkpoints_per_job if what in _QUICK else 1
            parts = [chosen[i : i + size] for i in range(0, len(chosen), size)]
            own = replace(settings.analysis, what=(what,))
            for part in parts:
                at = "–".join(map(str, dict.fromkeys((part[0], part[-1]))))
                jobs[f"{what} of {name}, {model}, seed {seed}, step {at}"] = partial(
                    _analyze, study, model, seed, own, part, settings.threads or 1
                )
    return jobs


def _train(
    study: Path, model: str, seed: int, optimization: Optimization, hardware: Hardware, threads: int
) -> None:  # fmt: skip
    _quietly(threads)
    train_study(study, [model], [seed], optimization, hardware)


def _analyze(
    study: Path, model: str, seed: int, settings: AnalysisSettings, steps: Sequence[int], threads: int
) -> None:  # fmt: skip
    _quietly(threads)
    asked = study_probes(study)
    counts = study_counts(study, asked, settings.window) if "surprisal" in settings.what else pd.DataFrame()
    analyze(study / model / f"seed{seed}", asked, counts, settings, steps)


def _quietly(threads: int) -> None:
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _write(out: Path, settings: SweepSettings, studies: Mapping[str, Path]) -> None:
    """Write the gain of all studies that have one as a table and a figure."""
    tables = {}
    for kind in ("gain", "r2"):
        found = [read_table(study, kind).assign(**{CORPUS: name}) for name, study in studies.items()]
        rows = pd.concat(found, ignore_index=True)
        tables[kind] = rows[rows["model"].isin(settings.models) & (rows["seed"] < settings.seeds)]
    if tables["gain"].empty:
        return
    table = summary(tables["gain"].assign(kind="grounding"), tables["r2"], CORPUS)
    table["tokens"] = table["step"] * settings.optimization.tokens_per_step
    write_json(out / "sweep.json", {"dials": settings.dials, "rows": table.to_dict("records")})
    write_text(out / "sweep.md", markdown(table, CORPUS))
    write_text(out / "sweep.svg", curves(table, CORPUS))


@dataclass(frozen=True, kw_only=True)
class Sweep(SweepSettings):
    """``symground sweep``."""

    corpus: tyro.conf.Positional[tuple[str, ...]]
    """The training corpus, as for data."""
    out: str | None = None
    """Folder of the sweep, with a study for each corpus, the jobs and their errors; runs/sweep by default."""

    def run(self) -> Path:
        check_named(self.corpus)
        return run_sweep(self.corpus, self.out or "runs/sweep", self)
