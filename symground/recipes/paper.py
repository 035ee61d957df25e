"""The study itself, testbed by testbed: from its corpus to its results, compared with the study's own figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from symground.analysis.results import read_table
from symground.analysis.run import AnalysisSettings
from symground.data import ChatSettings, DialogSettings, noun_list
from symground.data.scenes import GeneratedImagesSettings
from symground.data.sequences import ImageSet
from symground.data.visdial import stand_in_images
from symground.errors import check_types, choice, integer
from symground.files import read_json, runs_of, write_json, write_text
from symground.models import PRESETS, parameter_count
from symground.recipes.prepare import CHILDES, VISDIAL, prepare
from symground.recipes.study import study_probes
from symground.recipes.sweep import SweepSettings, raise_failed, train_and_analyze
from symground.reports import report
from symground.reports.comparisons.paper import markdown, tables
from symground.reports.comparisons.paper_figures import figures
from symground.reports.pages.study import summary
from symground.reports.sections.parts import StudyResults
from symground.running import BACKENDS
from symground.training import Hardware, Optimization
from symground.training.provenance import versions

STUDY, CPU = "study", "cpu"
SCALES = (STUDY, CPU)
#: Testbed → the kind of its corpus.
RECIPES = {"paper-childes": CHILDES, "paper-captions": VISDIAL, "paper-images": VISDIAL}
IMAGES = "paper-images"
_WHAT = ("surprisal", "saliency", "lens", "interventions")


@dataclass(frozen=True)
class PaperSettings:
    """The scale of the study, and where it runs."""

    scale: str | None = None
    """"study": sizes as in the study, for a GPU; "cpu": small sizes, about an hour on two cores. The default is "study"
    if there is a GPU."""
    models: tuple[str, ...] = ()
    """Presets; by default GPT-2 of 4, 12 and 18 layers, Mamba-2 of 4 and 12, an LSTM of 4, of the scale's width."""
    seeds: int | None = None
    """Runs of each model, with the seeds 0, 1, …; by default 5 as in the study, or 2 at the scale "cpu"."""
    images: str | None = None
    """Image set (symground features) for the dialogues of paper-images; by default generated stand-ins, whose patches
    show only the nouns of the caption."""
    steps: int | None = None
    """Steps of training; the scale's by default. Checkpoints and interventions keep their relative positions."""
    jobs: int = 1
    """Number of runs in parallel, each a process with --threads threads (one by default)."""
    threads: int | None = None
    """CPU threads of each run."""
    backend: str = "processes"
    """Where runs execute: "processes" of this machine, or "ray", a cluster whose machines share the folder."""
    hardware: tyro.conf.OmitArgPrefixes[Hardware] = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        check_types(self)
        if self.scale is not None:
            choice("scale", self.scale, SCALES)
        for model in self.models:
            choice("models", model, PRESETS)
        choice("backend", self.backend, BACKENDS)
        for name, least in (("steps", 4), ("seeds", 1), ("threads", 1), ("jobs", 1)):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), least)


def sweep_settings(recipe: str, settings: PaperSettings) -> SweepSettings:
    """The settings of everything that a recipe trains and measures, at the scale of ``settings``.

    Raises:
        ValueError: an unknown recipe, or no scale on a machine without a GPU.
    """
    choice("recipe", recipe, RECIPES)
    scale = settings.scale or (STUDY if torch.cuda.is_available() else None)
    if scale is None:
        raise ValueError(
            "scale: the study's sizes need a GPU (a 12-layer run takes some 6e16 operations), and there is none. "
            "Use --scale cpu for small sizes, or --scale study to train the large ones on this CPU"
        )
    if scale == STUDY:
        whole = _of_study(settings.steps)
    else:
        whole = _childes_on_cpu(settings.steps) if recipe == "paper-childes" else _dialogues_on_cpu(settings.steps)
    return replace(
        whole, models=settings.models or whole.models, seeds=settings.seeds or whole.seeds, jobs=settings.jobs,
        threads=settings.threads, backend=settings.backend, hardware=settings.hardware,
    )  # fmt: skip


#: The sizes of stand-ins, which have fewer patches than the 256 of the study's DINOv2.
_STAND_INS = GeneratedImagesSettings(grid=4, size=2)


def _of_study(steps: int | None) -> SweepSettings:
    """The settings of arXiv 2510.13796 and its authors' public repositories. These describe the training of GPT-2 only;
    Mamba-2 and the LSTM use the same settings. Weight decay is this package's."""
    steps = steps or 20_000
    return SweepSettings(
        models=("gpt2-4l-768", "gpt2-12l-768", "gpt2-18l-768", "mamba2-4l-768", "mamba2-12l-768", "lstm-4l-768"),
        seeds=5,
        optimization=Optimization(
            steps=steps, batch_size=8, length=512, learning_rate=5e-5, warmup=max(1, steps // 20), decay="linear",
            beta2=0.999, precision="bfloat16", checkpoints=_checkpoints(steps, 40),
        ),
        analysis=AnalysisSettings(
            what=_WHAT, intervene_steps=_table_steps(steps), saliency_steps=_tenths(steps),
            lens_steps=_table_steps(steps),
        ),
    )  # fmt: skip


def _on_cpu(steps: int, learning_rate: float) -> SweepSettings:
    return SweepSettings(
        models=("gpt2-4l", "gpt2-12l", "gpt2-18l", "mamba2-4l", "mamba2-12l", "lstm-4l"),
        seeds=2,
        optimization=Optimization(
            steps=steps, batch_size=8, length=128, learning_rate=learning_rate, warmup=max(1, steps // 20),
            checkpoints=_checkpoints(steps, 15),
        ),
        analysis=AnalysisSettings(
            what=_WHAT, intervene_steps=_table_steps(steps), saliency_steps=_table_steps(steps), lens_steps=(steps,),
            lens_fit=50, kinds=("aggregate",), spans=(0,), intervene_contexts=2, map_nouns=2, map_contexts=1,
        ),
    )  # fmt: skip


def _childes_on_cpu(steps: int | None) -> SweepSettings:
    """Settings that show the link with little text and few steps: transcripts with many scenes, words that are not
    rare, and a high learning rate."""
    chosen = _on_cpu(steps or 1500, 4e-3)
    return replace(chosen, chat=ChatSettings(min_env_tiers=150), min_word_count=20)


def _dialogues_on_cpu(steps: int | None) -> SweepSettings:
    """Settings for VisDial's validation set. Few nouns occur a hundred times in its 2,064 dialogues, so the threshold
    is lower, and training runs over many epochs. Later turns say little about the caption's nouns, so they are cut."""
    chosen = replace(_on_cpu(steps or 3000, 2e-3), models=("gpt2-4l", "mamba2-4l", "lstm-4l"))
    return replace(chosen, visdial=DialogSettings(rounds=4), nouns="cdi", min_noun_count=20)


def _checkpoints(steps: int, parts: int) -> str:
    """Steps of checkpoints: evenly over training, two more before the first, and those of the analyses."""
    first = steps / parts
    at = {0, round(first / 4), round(first / 2), *(round(first * i) for i in range(1, parts + 1))}
    return ",".join(map(str, sorted(at | {*_table_steps(steps), *_tenths(steps)})))


def _table_steps(steps: int) -> tuple[int, ...]:
    """The steps of the study's table: a quarter, half and all of the training (5,000, 10,000 and 20,000 steps)."""
    return (steps // 4, steps // 2, steps)


def _tenths(steps: int) -> tuple[int, ...]:
    return tuple(sorted({*(steps * i // 10 for i in range(1, 11)), *_table_steps(steps)}))


def run_paper(corpus: Sequence[str], out: str | Path, settings: PaperSettings) -> Path:
    """Prepare, train, analyse and report; returns the path of the report. Repeating the call resumes the work.

    ``out`` is a study like any other. Besides its report it has ``paper.md``, which compares the study's results with
    ours, ``paper.json`` with all numbers, and ``paper-*.svg``. Of the corpus's words they contain only the nouns.

    Args:
        corpus: a name in `RECIPES`, then the paths of its data.
        out: the study's folder.
        settings: the scale and where to run.

    Raises:
        ValueError: an unknown recipe, or one without paths; no scale on a machine without a GPU; a folder of another
            study.
        RuntimeError: some jobs failed (the message has each with its error); the others are in the tables.
    """
    recipe, *paths = corpus
    if not paths:
        raise ValueError(f"corpus: expected paths after {recipe!r}, got none")
    whole, study = sweep_settings(recipe, settings), Path(out).resolve()
    if recipe == IMAGES:
        whole = _with_images(whole, paths, study, settings.images)
    prepare([RECIPES[recipe], *paths], study, whole)
    failed = train_and_analyze(whole, {recipe: study}, study / "jobs")
    if len(read_table(study, "gain")):
        report(study)
        _write(study, recipe, whole)
    raise_failed(failed)
    return study / "report.html"


def _with_images(whole: SweepSettings, paths: Sequence[str], study: Path, images: str | None) -> SweepSettings:
    if images is None:
        images = f"{study}-images"
        stand_in_images(paths, images, noun_list(whole.nouns, whole.noun_categories), whole.visdial, _STAND_INS)
    return replace(whole, visdial=replace(whole.visdial, images=images))


def _write(study: Path, recipe: str, settings: SweepSettings) -> None:
    read, asked = StudyResults.read(study), study_probes(study)
    tokens = settings.optimization.tokens_per_step
    found = tables(read, settings.models, layers_of(settings.models))
    about: dict[str, Any] = {
        "recipe": recipe, "corpus": read_json(study / "data" / "statistics.json"), "sizes": _sizes(study, settings),
        "nouns": len(asked.nouns), "contexts": len(asked.contexts),
        "tokens_per_step": tokens, "steps": settings.optimization.steps, "settings": asdict(settings),
        "layers_from": 0, "versions": versions(), "trained_at": _revisions(study), "summary": summary(study),
    }  # fmt: skip
    if images := settings.visdial.images:
        about["stand_ins"] = "stand_ins" in ImageSet.load(images).description
        about["settings"]["visdial"]["images"] = Path(images).name
    for kind in ("chat", "visdial"):
        about["corpus"].pop(kind, None)  # they name files
    write_json(study / "paper.json", {**about, **{name: frame.to_dict("records") for name, frame in found.items()}})
    write_text(study / "paper.md", markdown(found, about))
    for name, drawn in figures(found, tokens).items():
        write_text(study / f"paper-{name}.svg", drawn)


def _revisions(study: Path) -> list[str]:
    """The revisions of this package with which the runs were trained."""
    found = (read_json(run / "config.json")["versions"]["revision"] for run in runs_of(study))
    return sorted({str(revision) for revision in found})


def layers_of(models: Sequence[str]) -> dict[str, int]:
    return {model: int(PRESETS[model].num_hidden_layers) for model in models}


def _sizes(study: Path, settings: SweepSettings) -> dict[str, int]:
    vocabulary = read_json(study / "data" / "statistics.json")["vocabulary"]
    return {name: parameter_count(name, vocabulary, settings.optimization.length) for name in settings.models}


@dataclass(frozen=True, kw_only=True)
class Paper(PaperSettings):
    """``symground run`` of a testbed."""

    corpus: tyro.conf.Positional[tuple[str, ...]]
    """'paper-childes' and paths of transcripts; 'paper-captions' or 'paper-images' and paths of dialogues, whose
    scenes are captions or images."""
    out: str | None = None
    """Folder of the study; runs/ and the testbed's name by default."""

    def run(self) -> Path:
        return run_paper(self.corpus, self.out or f"runs/{self.corpus[0]}", self)
