"""A study: corpus, models × seeds, analyses, report. Each stage resumes from what is finished."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import tyro

from symground.analysis import Probes, cooccurrence, gain_interval, probes
from symground.analysis.probing import ProbeImages, context_of
from symground.analysis.results import TABLES, Table, partial_scores, read_table
from symground.analysis.run import AnalysisSettings, analyze
from symground.data import Corpus
from symground.data.sequences import ImageSet, Shown
from symground.errors import check_types, choice, integer
from symground.files import checkpoint_steps, images_of, read_json, runs_of, study_of
from symground.models import PRESETS, load_tokenizer
from symground.recipes.prepare import GENERATED, PROBE_IMAGES, CorpusSettings, check_named, kind_of, prepare, say
from symground.reports import report
from symground.reports.formats import control_cell, number, with_interval
from symground.reports.sections.silencing import differing
from symground.training import Hardware, Optimization, TrainSettings, train


@dataclass(frozen=True)
class StudySettings(CorpusSettings):
    """All settings of a study."""

    optimization: tyro.conf.OmitArgPrefixes[Optimization] = field(
        default_factory=lambda: Optimization(length=128, learning_rate=2e-3)
    )
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Peak rates by the beginning of the preset's name (gpt2 1e-3 lstm 3e-3); others use --learning-rate."""
    hardware: tyro.conf.OmitArgPrefixes[Hardware] = field(default_factory=Hardware)
    score_while_training: bool = False
    """Score the probes at each checkpoint during training, so that the report's curves grow."""
    models: tuple[str, ...] = ("gpt2-4l",)
    """Presets to train."""
    seeds: int = 1
    """Runs of each model, with the seeds 0, 1, …"""
    threads: int | None = None
    """CPU threads; PyTorch's own choice by default."""
    analysis: tyro.conf.OmitArgPrefixes[AnalysisSettings] = field(default_factory=AnalysisSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        for model in self.models:
            choice("models", model, PRESETS)
        if self.threads is not None:
            integer("threads", self.threads, 1)
        integer("seeds", self.seeds, 1)


@dataclass(frozen=True)
class DemoSettings(StudySettings):
    """The demonstration: a 4-layer GPT-2 and a 4-layer LSTM on the generated corpus, in minutes on two cores."""

    optimization: tyro.conf.OmitArgPrefixes[Optimization] = field(default_factory=lambda: Optimization(steps=800))
    models: tuple[str, ...] = ("gpt2-4l", "lstm-4l")
    """Presets to train."""
    # A model this small trains no faster on two threads, and half as fast if another process keeps a core busy.
    threads: int | None = 1
    """CPU threads; PyTorch's own choice if None."""
    analysis: tyro.conf.OmitArgPrefixes[AnalysisSettings] = field(
        default_factory=lambda: AnalysisSettings(intervene_contexts=3, lens_fit=50)
    )


def run_study(corpus: Sequence[str], out: str | Path, settings: StudySettings) -> Path:
    """Prepare, train, analyse and report; returns the report's path."""
    study = Path(out)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    prepare(corpus, study, settings)
    for model in settings.models:
        train_study(
            study, [model], range(settings.seeds), settings.optimization.of_model(model, settings.learning_rates),
            settings.hardware, score=settings.score_while_training,
        )  # fmt: skip
    analyze_study(study, settings.analysis)
    return report(study)


def train_study(
    study: Path, models: Sequence[str], seeds: Sequence[int], optimization: Optimization,
    hardware: Hardware | None = None, *, score: bool = False,
) -> None:  # fmt: skip
    """Train every model with every seed; finished runs are skipped, interrupted ones resume.

    With ``score``, the probes are scored into the study's tables at each checkpoint, once it is saved.
    """
    corpus = Corpus.load(study / "data", study).part("train")
    for model in models:
        for seed in seeds:
            settings = TrainSettings(**_shared(optimization), model=model, seed=seed)
            run = study / model / f"seed{seed}"
            # Rows in the tables belong to a removed run of the same name. Only rank 0 of torchrun drops them.
            if not (run / "config.json").exists() and int(os.environ.get("RANK", 0)) == 0:
                _forget(study, model, seed)
            train(corpus, settings, run, hardware, at_checkpoint=_scored(study) if score else None)


def _scored(study: Path) -> Callable[[Path, int], None]:
    asked = study_probes(study)
    settings = AnalysisSettings(what=("surprisal",))
    counts = study_counts(study, asked, settings.window)

    def score(run: Path, _: int) -> None:
        analyze(run, asked, counts, settings)

    return score


def _shared(optimization: Optimization) -> dict[str, Any]:
    """The settings that do not depend on the run; ``optimization`` may be one run's own."""
    return {f.name: getattr(optimization, f.name) for f in fields(Optimization)}


def _forget(study: Path, model: str, seed: int) -> None:
    for name in (*TABLES, "controls"):
        table = Table(study, name)
        table.drop(model, seed)
        table.save()
    for folder in partial_scores(study, model, seed):
        shutil.rmtree(folder, ignore_errors=True)


def study_probes(study: Path) -> Probes:
    """The probes of a study, from its config.json."""
    config = read_json(study / "config.json")
    if "nouns" not in config:
        raise ValueError(f"{study} is not a study: its config.json names no nouns")
    contexts = [context_of(parts) for parts in config["contexts"]]
    return probes(
        load_tokenizer(study), config["nouns"], contexts, spoken=config.get("spoken"), images=study_images(study)
    )


def study_images(study: Path) -> ProbeImages | None:
    """The probe images of a study's nouns; None if its scenes are words."""
    data = study / "data"
    place = images_of(data)
    if place is None:
        return None
    probed = read_json(data / PROBE_IMAGES)
    of = {noun: [Shown(i, tuple(at)) for i, at in found] for noun, found in probed["of"].items()}
    return ProbeImages(ImageSet.load(place).patches, of, read_json(data / "images.json")["shown"], probed["empty"])


def study_counts(study: Path, asked: Probes, window: int) -> pd.DataFrame:
    """Co-occurrence counts of the probes' nouns in the training documents."""
    corpus = Corpus.load(study / "data", study).part("train")
    spoken = dict(zip(asked.nouns, asked.spoken, strict=True))
    return cooccurrence(corpus, asked.nouns, window, spoken=spoken, cue=asked.contexts[0].cue)


def analyze_study(path: str | Path, settings: AnalysisSettings) -> Path:
    """Analyse every run of a study, or one run of it; returns the study's folder.

    If a run cannot be analysed, the others still are. A run without a checkpoint is reported and skipped.

    Raises:
        FileNotFoundError: the path is neither a study nor a run, or no run has a checkpoint.
        ValueError: some runs cannot be analysed (the message has each with its error); the others are in the tables.
    """
    runs = runs_of(path)
    trained = [run for run in runs if checkpoint_steps(run)]
    if not trained:
        raise FileNotFoundError(
            f"{path}: {', '.join(map(str, runs))} has no checkpoint yet; symground train writes checkpoints"
        )
    study = study_of(runs[0])
    asked = study_probes(study)
    counts = study_counts(study, asked, settings.window)
    failed: dict[Path, Exception] = {}
    for run in runs:
        if run not in trained:
            say(f"{run} has no checkpoint yet and is skipped")
            continue
        try:
            left = analyze(run, asked, counts, settings)
        except (ValueError, FileNotFoundError) as error:
            if len(trained) == 1:
                raise
            failed[run] = error
            say(f"{run} could not be analysed: {error}")
            continue
        if left:
            say(f"{run}: {left} analyses of checkpoints already exist and are kept; --again repeats them")
    summarise(study)
    if failed:
        listed = "; ".join(f"{run}: {error}" for run, error in failed.items())
        raise ValueError(f"{len(failed)} of {len(trained)} runs could not be analysed, the others were: {listed}")
    return study


def summarise(study: Path) -> None:
    """Print the gain and the interventions of a study's last checkpoints."""
    gains = read_table(study, "gain")
    for (model, seed), frame in gains.groupby(["model", "seed"]):
        last = frame[frame["step"] == frame["step"].max()]
        say(f"{model} seed {seed}, step {last['step'].iloc[0]}: gain {with_interval(*gain_interval(last))} nats")
    table = read_table(study, "interventions")
    apart = [] if table.empty else differing(table)
    row: Any
    for row in table.itertuples():
        which = ", ".join([row.denominator, f"span {row.span}", *(f"{name} {getattr(row, name)}" for name in apart)])
        say(
            f"{row.model} seed {row.seed}, step {row.step}: {row.kind} heads ({which}) "
            f"{number(row.heads_per_example)} per example; surprisal {number(row.original)}, silenced "
            f"{number(row.intervened)}, random heads {control_cell(row._asdict())}"
        )


@dataclass(frozen=True, kw_only=True)
class Demo(DemoSettings):
    """``symground demo``."""

    out: str = "runs/demo"
    """Folder of the study."""

    def run(self) -> Path:
        return run_study([GENERATED], self.out, self)


@dataclass(frozen=True, kw_only=True)
class Run(StudySettings):
    """``symground run``."""

    corpus: tyro.conf.Positional[tuple[str, ...]]
    """'generated'; 'generated-images'; 'childes' and paths of transcripts; or 'visdial' and paths of dialogues, as for
    data."""
    out: str | None = None
    """Folder of the study; runs/ and the corpus's name by default."""

    def run(self) -> Path:
        check_named(self.corpus)
        kind, paths = kind_of(self.corpus)
        out = self.out or f"runs/{Path(*paths[:1]).resolve().name.partition('.')[0] if paths else kind}"
        return run_study(self.corpus, out, self)


@dataclass(frozen=True, kw_only=True)
class Train(TrainSettings):
    """``symground train``."""

    study: tyro.conf.Positional[str]
    """Folder of the study."""
    hardware: tyro.conf.OmitArgPrefixes[Hardware] = field(default_factory=Hardware)
    score: bool = False
    """Score the probes at each checkpoint during training, so that the report's curves grow."""

    def run(self) -> Path:
        study = Path(self.study)
        train_study(study, [self.model], [self.seed], self, self.hardware, score=self.score)
        return study / self.model / f"seed{self.seed}"


@dataclass(frozen=True)
class Analyze:
    """``symground analyze``."""

    path: tyro.conf.Positional[str]
    """Folder of a study or of a run."""
    analysis: tyro.conf.OmitArgPrefixes[AnalysisSettings] = field(default_factory=AnalysisSettings)

    def __post_init__(self) -> None:
        check_types(self)

    def run(self) -> Path:
        return analyze_study(self.path, self.analysis) / "results"
