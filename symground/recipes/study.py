"""A study: corpus, models × seeds, analyses, report. Each stage goes on from what is already there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import tyro

from symground.analysis import Context, Probes, cooccurrence, gain_interval, probes, split_contexts
from symground.analysis.contexts import context_of, read_contexts, with_gap
from symground.analysis.results import TABLES, Table, partial_scores, read_table
from symground.analysis.run import AnalysisSettings, analyze
from symground.data import (
    ChatSettings,
    Corpus,
    CorpusBuilder,
    GeneratedSettings,
    add_scenes,
    add_transcripts,
    nouns_over_threshold,
)
from symground.folders import read_json, runs_of, study_of, write_json
from symground.models import PRESETS, load_tokenizer
from symground.reports import report
from symground.training import Optimization, TrainSettings, train

GENERATED = "generated"


@dataclass(frozen=True)
class StudySettings:
    """Everything a study depends on."""

    chat: tyro.conf.OmitArgPrefixes[ChatSettings] = field(default_factory=ChatSettings)
    generated: GeneratedSettings = field(default_factory=GeneratedSettings)
    optimization: tyro.conf.OmitArgPrefixes[Optimization] = field(
        default_factory=lambda: Optimization(length=128, learning_rate=2e-3)
    )
    models: tuple[str, ...] = ("gpt2-4l",)
    """Presets to train."""
    seeds: int = 1
    """Runs of each model, with the seeds 0, 1, …"""
    min_word_count: int = 5
    """Rarer tokens become [UNK] (transcripts only)."""
    min_noun_count: int = 100
    """A noun is probed that stands this often both as ENV and as LAN (the study's rule)."""
    contexts: str | None = None
    """JSON file of sentence pairs; the ten of the package by default."""
    threads: int | None = None
    """CPU threads; PyTorch's own choice by default."""
    analysis: tyro.conf.OmitArgPrefixes[AnalysisSettings] = field(default_factory=AnalysisSettings)

    def __post_init__(self) -> None:
        for model in self.models:
            if model not in PRESETS:
                raise ValueError(f"models: expected some of {', '.join(PRESETS)}; got {model!r}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads: expected at least 1, got {self.threads}")
        for name in ("seeds", "min_word_count", "min_noun_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class DemoSettings(StudySettings):
    """The demonstration: a 4-layer GPT-2 and a 4-layer LSTM on the generated corpus, minutes on two cores."""

    optimization: tyro.conf.OmitArgPrefixes[Optimization] = field(default_factory=lambda: Optimization(steps=800))
    models: tuple[str, ...] = ("gpt2-4l", "lstm-4l")
    """Presets to train."""
    # So small a model trains no faster on two threads, and half as fast when something else keeps a core busy.
    threads: int | None = 1
    """CPU threads; PyTorch's own choice when None."""
    analysis: tyro.conf.OmitArgPrefixes[AnalysisSettings] = field(
        default_factory=lambda: AnalysisSettings(intervene_contexts=3)
    )


def run_study(corpus: Sequence[str], out: str | Path, settings: StudySettings) -> Path:
    """Prepare, train, analyse and report; returns the report's path."""
    study = Path(out)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    prepare(corpus, study, settings)
    train_study(study, settings.models, range(settings.seeds), settings.optimization)
    analyze_study(study, settings.analysis)
    return report(study)


def prepare(corpus: Sequence[str], out: str | Path, settings: StudySettings) -> Corpus:
    """Make a study's folder from ``corpus`` ("generated", or paths of transcripts), or load the one that is there.

    Raises:
        ValueError: the folder holds a study of another corpus, no noun passes the threshold, or no context's words are
            all in the vocabulary.
    """
    study, generated = Path(out), list(corpus) == [GENERATED]
    wanted: dict[str, Any] = {
        "corpus": list(corpus),
        "min_noun_count": settings.min_noun_count,
        "contexts_file": settings.contexts,
    }
    if generated:
        wanted["generated"] = asdict(settings.generated)
    else:
        wanted |= {"chat": asdict(settings.chat), "min_word_count": settings.min_word_count}
    wanted = json.loads(json.dumps(wanted))  # as config.json holds it: its tuples are lists
    if (study / "config.json").is_file():
        found = read_json(study / "config.json")
        if generated and isinstance(found.get("generated"), dict):  # dials younger than the study stand where they did
            found["generated"] = {**asdict(GeneratedSettings()), **found["generated"]}
        differing = [
            f"{name} is {found.get(name)!r} there, {value!r} here"
            for name, value in wanted.items()
            if found.get(name) != value
        ]
        if differing:
            raise ValueError(f"{study} holds another study: {'; '.join(differing)}. Choose another folder (--out).")
        return Corpus.load(study / "data", study)
    builder = CorpusBuilder()
    chosen = read_contexts(settings.contexts)
    if settings.chat.fold_case and not generated:
        chosen = [
            Context(c.env.lower(), c.lan.lower(), tuple(u._replace(text=u.text.lower()) for u in c.between))
            for c in chosen
        ]
    if generated and settings.generated.gap:
        chosen = with_gap(chosen, settings.generated.gap)
    if generated:
        add_scenes(builder, settings.generated)
        built = builder.build()
    else:
        add_transcripts(builder, corpus, settings.chat)
        built = builder.build(settings.min_word_count)
    nouns = nouns_over_threshold(built.counts, settings.min_noun_count)
    kept, lacking = split_contexts(built.tokenizer, chosen)
    for context, words in lacking.items():
        _say(f"context left out, its words {', '.join(words)} are not in the vocabulary: {context}")
    if not kept:
        raise ValueError("contexts: the vocabulary lacks words of every one of them; give others with --contexts")
    built.save(study / "data")
    built.tokenizer.save_pretrained(study)
    # Last: a folder with a config.json is a study whose data is whole.
    write_json(study / "config.json", {**wanted, "nouns": nouns, "contexts": kept})
    statistics = built.statistics
    _say(
        f"{study}: {statistics['tokens']:,} tokens ({statistics['env_tokens'] / statistics['tokens']:.0%} ENV), "
        f"vocabulary {statistics['vocabulary']:,}, {len(nouns)} nouns, {len(kept)} contexts"
    )
    for skipped in statistics.get("chat", {}).get("skipped", []):
        _say(f"set aside: {skipped['file']}: {skipped['reason']}")
    return Corpus.load(study / "data", study)


def train_study(study: Path, models: Sequence[str], seeds: Sequence[int], optimization: Optimization) -> None:
    """Train every model with every seed; finished runs are left, interrupted ones go on."""
    corpus = Corpus.load(study / "data", study)
    for model in models:
        for seed in seeds:
            settings = TrainSettings(**_shared(optimization), model=model, seed=seed)
            run = study / model / f"seed{seed}"
            if not (run / "config.json").exists():  # a new run: what the tables hold is of one that was removed
                _forget(study, model, seed)
            train(corpus, settings, run)


def _shared(optimization: Optimization) -> dict[str, Any]:
    """The settings that do not depend on the run; ``optimization`` may be one run's own."""
    return {f.name: getattr(optimization, f.name) for f in fields(Optimization)}


def _forget(study: Path, model: str, seed: int) -> None:
    for name in TABLES:
        table = Table(study, name)
        table.drop(model, seed)
        table.save()
    for folder in partial_scores(study, model, seed):
        shutil.rmtree(folder, ignore_errors=True)


def study_probes(study: Path) -> Probes:
    """The probes that a study's config.json names."""
    config = read_json(study / "config.json")
    if "nouns" not in config:
        raise ValueError(f"{study} is not a study: its config.json names no nouns")
    return probes(load_tokenizer(study), config["nouns"], [context_of(parts) for parts in config["contexts"]])


def analyze_study(path: str | Path, settings: AnalysisSettings) -> Path:
    """Analyse every run of a study, or one run of it; returns the study's folder."""
    runs = runs_of(path)
    study = study_of(runs[0])
    asked = study_probes(study)
    counts = cooccurrence(Corpus.load(study / "data", study), asked.nouns, settings.window)
    for run in runs:
        left = analyze(run, asked, counts, settings)
        if left:
            _say(f"{run}: {left} analyses of checkpoints were there already and stay; --again redoes them")
    _summarise(study)
    return study


def _summarise(study: Path) -> None:
    gains = read_table(study, "gain")
    for (model, seed), frame in gains.groupby(["model", "seed"]):
        last = frame[frame["step"] == frame["step"].max()]
        mean, low, high = gain_interval(last)
        _say(f"{model} seed {seed}, step {last['step'].iloc[0]}: gain {mean:.2f} nats [{low:.2f}, {high:.2f}]")
    table = read_table(study, "interventions")
    for row in table.itertuples():
        _say(
            f"{row.model} seed {row.seed}, step {row.step}: {row.kind} heads ({row.denominator}, span {row.span}) "
            f"{row.heads_per_example:.2f} per example; surprisal {row.original:.2f}, silenced {row.intervened:.2f}, "
            f"random heads {row.control:.2f} ± {row.control_sd:.2f}"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
