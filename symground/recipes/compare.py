"""Comparisons of models on several generated corpora: parallel runs and their collected tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
import tyro

from symground.analysis.results import read_table
from symground.analysis.run import AnalysisSettings, analyze
from symground.data import GeneratedSettings
from symground.errors import check_types, choice, integer, several
from symground.files import checkpoint_steps
from symground.models import PRESETS
from symground.recipes.study import study_counts, study_probes, train_study
from symground.running import BACKENDS, run_jobs
from symground.training import Optimization

_WHAT = AnalysisSettings(what=("surprisal",))


@dataclass(frozen=True)
class CompareSettings:
    """The models, the corpus and the training of a comparison."""

    models: tuple[str, ...] = ("gpt2-4l",)
    """Presets to train."""
    seeds: int = 3
    """Runs of each model on each corpus, with the seeds 0, 1, …"""
    optimization: tyro.conf.OmitArgPrefixes[Optimization] = field(
        default_factory=lambda: Optimization(steps=1200, batch_size=8, length=128, checkpoints="0,every 100")
    )
    learning_rates: dict[str, float] = field(default_factory=lambda: {"gpt2": 1e-3, "mamba2": 2e-3, "lstm": 3e-3})
    """Peak rates by the beginning of the preset's name; others use --learning-rate."""
    generated: GeneratedSettings = field(default_factory=GeneratedSettings)
    jobs: int = 1
    """Number of runs in parallel, each a process with --threads threads."""
    backend: str = "processes"
    """Where runs execute: "processes" of this machine, or "ray", a cluster whose machines share the folder."""
    threads: int = 1
    """CPU threads of each run."""

    def __post_init__(self) -> None:
        check_types(self)
        several("models", self.models, PRESETS)
        if not self.learning_rates:
            raise ValueError("learning_rates: expected at least one; got none")
        choice("backend", self.backend, BACKENDS)
        for name in ("seeds", "jobs", "threads"):
            integer(name, getattr(self, name), 1)

    def optimization_of(self, model: str) -> Optimization:
        return self.optimization.of_model(model, self.learning_rates)

    def asked(self, own: type[CompareSettings]) -> dict[str, Any]:
        """The settings of the comparison class ``own`` as JSON, without the fields of subclasses such as ``out``."""
        return {f.name: asdict(self)[f.name] for f in fields(own)}


def run_all(
    settings: CompareSettings, studies: Mapping[Any, Path], name: str, records: Path,
    also: Callable[[Path, str, int], None] | None = None,
) -> list[str]:  # fmt: skip
    """Train and score every model with every seed on every study; returns the failed runs with their errors.

    Args:
        settings: the settings of the comparison.
        studies: value → the folder of its study; runs that are finished in it are not repeated.
        name: of the quantity that has these values.
        records: folder for a record of each run's outcome.
        also: called with (study, model, seed) after a run is scored; None for no call.
    """
    runs = [(value, model, seed) for seed in range(settings.seeds) for value in studies for model in settings.models]
    jobs = {
        f"{name} {value}, {model}, seed {seed}": partial(
            _one, studies[value].resolve(), model, seed, settings.optimization_of(model), settings.threads, also
        )
        for value, model, seed in runs
    }
    failed = run_jobs(jobs, records, settings.jobs, settings.backend)
    return sorted(f"{job}: {error}" for job, error in failed.items())


def collected(settings: CompareSettings, studies: Mapping[Any, Path], name: str, table: str = "gain") -> pd.DataFrame:
    """The rows of a table in all studies, for the settings' models and seeds, with the value in column ``name``."""
    tables = []
    for value, study in studies.items():
        rows = read_table(study, table)
        if len(rows):
            asked = rows["model"].isin(settings.models) & (rows["seed"] < settings.seeds)
            tables.append(rows[asked].assign(**{name: value}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def checkpoints(settings: CompareSettings, studies: Mapping[Any, Path]) -> dict[str, list[int]]:
    """STUDY/MODEL/seedN → the steps of its finished checkpoints, for the record."""
    runs = ((study, model, seed) for study in studies.values() for model in settings.models
            for seed in range(settings.seeds))  # fmt: skip
    return {
        f"{study.name}/{model}/seed{seed}": checkpoint_steps(study / model / f"seed{seed}")
        for study, model, seed in runs
    }


def _one(
    study: Path, model: str, seed: int, optimization: Optimization, threads: int,
    also: Callable[[Path, str, int], None] | None,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    train_study(study, [model], [seed], optimization)
    asked = study_probes(study)
    analyze(study / model / f"seed{seed}", asked, study_counts(study, asked, _WHAT.window), _WHAT)
    if also is not None:
        also(study, model, seed)
