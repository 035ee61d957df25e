"""A comparison of architectures across gaps: models of one size on the same tokens, with several seeds."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
import transformers

import symground
from symground.data import Corpus
from symground.errors import number
from symground.files import write_json, write_text
from symground.models import parameter_count
from symground.recipes.compare import CompareSettings, checkpoints, collected, run_all
from symground.recipes.prepare import GENERATED, CorpusSettings, prepare
from symground.recipes.study import study_probes
from symground.reports.comparisons.architectures import gains_over_gaps, markdown, over_training


@dataclass(frozen=True)
class ArchitecturesSettings(CompareSettings):
    """The architectures and gaps to compare."""

    models: tuple[str, ...] = ("gpt2-4l", "mamba2-4l", "lstm-4l", "lstm-1l-304")
    """Presets of one size."""
    gaps: tuple[int, ...] = (0, 4, 12)
    """Numbers of utterances without an object between a scene and the talk about it, in corpora and probes."""
    tolerance: float = 0.10
    """Largest difference in parameters, as a share of the smallest model's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gaps or min(self.gaps) < 0 or len(set(self.gaps)) < len(self.gaps):
            raise ValueError(f"gaps: expected different numbers of at least 0, got {self.gaps}")
        number("tolerance", self.tolerance, "[0, inf]")


def compare_architectures(out: str | Path, settings: ArchitecturesSettings) -> Path:
    """Train and score every model at every gap with every seed; returns the folder with the tables and the figure.

    Each folder OUT/gap-N is a study like any other. Runs that are finished in it are not repeated.

    Raises:
        ValueError: models of different sizes, or a folder of another comparison.
        RuntimeError: some runs failed (the message has each with its error); the others are in the tables.
    """
    out = Path(out)
    studies = {gap: out / f"gap-{gap}" for gap in settings.gaps}
    for gap, study in studies.items():
        prepare([GENERATED], study, CorpusSettings(generated=replace(settings.generated, gap=gap)))
    parameters = {}
    for gap, study in studies.items():
        parameters = _parameters(settings, len(Corpus.load(study / "data", study).tokenizer))
        _check_sizes(parameters, settings.tolerance, gap)
    failed = run_all(settings, studies, "gap", out / "jobs")
    gains = collected(settings, studies, "gap")
    if len(gains):
        _write(out, settings, studies, parameters, gains)
    if failed:
        raise RuntimeError(f"{len(failed)} of the runs failed, the others are done: {'; '.join(failed)}")
    return out


def _parameters(settings: ArchitecturesSettings, vocabulary: int) -> dict[str, int]:
    length = settings.optimization.length
    return {name: parameter_count(name, vocabulary, length) for name in settings.models}


def _check_sizes(parameters: dict[str, int], tolerance: float, gap: int) -> None:
    low, high = min(parameters.values()), max(parameters.values())
    if high > low * (1 + tolerance):
        sizes = ", ".join(f"{name} {count:,}" for name, count in parameters.items())
        raise ValueError(
            f"models: expected parameter counts within {tolerance:.0%} of the smallest (--tolerance), got {sizes} at "
            f"gap {gap}"
        )


def _write(
    out: Path,
    settings: ArchitecturesSettings,
    studies: dict[int, Path],
    parameters: dict[str, int],
    gains: pd.DataFrame,
) -> None:
    of_step = settings.optimization.tokens_per_step
    training = over_training(gains, "gap").assign(tokens=lambda table: table["step"] * of_step)
    distances = {gap: _distance(study) for gap, study in studies.items()}
    versions = {
        "symground": symground.__version__, "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip
    content = {
        "settings": settings.asked(ArchitecturesSettings), "versions": versions, "parameters": parameters,
        "tokens_per_step": of_step, "distance": distances, "checkpoints": checkpoints(settings, studies),
        "rows": training.to_dict("records"),
    }  # fmt: skip
    write_json(out / "architectures.json", content)
    text = markdown(training, parameters, distances)
    write_text(out / "architectures.md", text)
    write_text(out / "architectures.svg", gains_over_gaps(training))
    print(text)


def _distance(study: Path) -> float:
    """Mean distance in tokens from the ENV noun to the prediction position of a study's probes."""
    examples = study_probes(study).matched()
    noun = examples.query_masks["env"].int().argmax(1)
    return float((examples.prediction - noun).float().mean())


@dataclass(frozen=True, kw_only=True)
class Architectures(ArchitecturesSettings):
    """``symground architectures``."""

    out: str = "runs/architectures"
    """Folder of the comparison, with a study for each gap, the tables and the figure."""

    def run(self) -> Path:
        return compare_architectures(self.out, self)
