"""Which architectures learn the link, and across which gap: models of one size on the same tokens, several seeds."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
import transformers
import tyro

import symground
from symground.analysis.results import read_table
from symground.analysis.run import AnalysisSettings, analyze
from symground.data import Corpus, GeneratedSettings
from symground.folders import checkpoint_steps, write_json
from symground.models import PRESETS, create
from symground.recipes.prepare import GENERATED, CorpusSettings, prepare
from symground.recipes.study import study_counts, study_probes, train_study
from symground.reports.architectures import gains_over_gaps, markdown, over_training
from symground.training import Optimization

_WHAT = AnalysisSettings(what=("surprisal",))


@dataclass(frozen=True)
class ArchitecturesSettings:
    """What is compared."""

    models: tuple[str, ...] = ("gpt2-4l", "mamba2-4l", "lstm-4l", "lstm-1l-304")
    """Presets, of one size."""
    gaps: tuple[int, ...] = (0, 4, 12)
    """Utterances that name no object between the scene and the talk of it, in the corpora and in their probes."""
    seeds: int = 3
    """Runs of each model at each gap, with the seeds 0, 1, …"""
    optimization: tyro.conf.OmitArgPrefixes[Optimization] = field(
        default_factory=lambda: Optimization(steps=1200, batch_size=8, length=128, checkpoints="0,every 100")
    )
    learning_rates: dict[str, float] = field(default_factory=lambda: {"gpt2": 1e-3, "mamba2": 2e-3, "lstm": 3e-3})
    """Peak rates by the beginning of the preset's name; --learning-rate for all others."""
    generated: GeneratedSettings = field(default_factory=GeneratedSettings)
    tolerance: float = 0.10
    """The largest difference in parameters, as a share of the smallest model's."""
    jobs: int = 1
    """Runs side by side, each a process with --threads threads."""
    threads: int = 1
    """CPU threads of each run."""

    def __post_init__(self) -> None:
        for name, values, known in (("models", self.models, PRESETS), ("learning_rates", self.learning_rates, None)):
            if not values or (known is not None and not set(values) <= set(known)):
                expected = "at least one" if known is None else f"some of {', '.join(known)}"
                raise ValueError(f"{name}: expected {expected}; got {values}")
        if not self.gaps or min(self.gaps) < 0 or len(set(self.gaps)) < len(self.gaps):
            raise ValueError(f"gaps: expected different numbers of at least 0, got {self.gaps}")
        for name in ("seeds", "jobs", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.tolerance < 0:
            raise ValueError(f"tolerance: expected at least 0, got {self.tolerance}")

    def optimization_of(self, model: str) -> Optimization:
        rates = [rate for family, rate in self.learning_rates.items() if model.startswith(family)]
        return replace(self.optimization, learning_rate=rates[0]) if rates else self.optimization


def compare_architectures(out: str | Path, settings: ArchitecturesSettings) -> Path:
    """Train and score every model at every gap with every seed; returns the folder, with its tables and figure.

    A folder OUT/gap-N is a study like any other. What is finished there is not done again.

    Raises:
        ValueError: models of different sizes, or a folder of another comparison.
        RuntimeError: some run failed (each is named with its error); the others are done and in the tables.
    """
    out = Path(out)
    studies = {gap: out / f"gap-{gap}" for gap in settings.gaps}
    for gap, study in studies.items():
        prepare([GENERATED], study, CorpusSettings(generated=replace(settings.generated, gap=gap)))
    parameters = {}
    for gap, study in studies.items():
        parameters = _parameters(settings, len(Corpus.load(study / "data", study).tokenizer))
        _check_sizes(parameters, settings.tolerance, gap)
    failed = _run_all(settings, studies)
    gains = _collected(settings, studies)
    if len(gains):
        _write(out, settings, studies, parameters, gains)
    if failed:
        raise RuntimeError(f"{len(failed)} of the runs failed, the others are done: {'; '.join(failed)}")
    return out


def _parameters(settings: ArchitecturesSettings, vocabulary: int) -> dict[str, int]:
    length = settings.optimization.length
    models = {name: create(name, vocabulary, positions=length) for name in settings.models}
    return {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}


def _check_sizes(parameters: dict[str, int], tolerance: float, gap: int) -> None:
    low, high = min(parameters.values()), max(parameters.values())
    if high > low * (1 + tolerance):
        sizes = ", ".join(f"{name} {count:,}" for name, count in parameters.items())
        raise ValueError(
            f"models: expected parameter counts within {tolerance:.0%} of the smallest (--tolerance), got {sizes} at "
            f"gap {gap}"
        )


def _run_all(settings: ArchitecturesSettings, studies: dict[int, Path]) -> list[str]:
    """Every run, the failed ones named."""
    failed = []
    runs = [(gap, model, seed) for seed in range(settings.seeds) for gap in studies for model in settings.models]
    with _workers(settings.jobs) as submit:
        waiting = {
            submit(partial(_one, studies[gap], model, seed, settings.optimization_of(model), settings.threads)):
            f"gap {gap}, {model}, seed {seed}"
            for gap, model, seed in runs
        }  # fmt: skip
        for number, future in enumerate(as_completed(waiting), 1):
            error = future.exception()
            if error is not None:
                failed.append(f"{waiting[future]}: {' '.join(str(error).split()) or type(error).__name__}")
            _say(f"{number}/{len(waiting)} {waiting[future]}: {'failed' if error else 'done'}")
    return sorted(failed)


@contextmanager
def _workers(jobs: int) -> Iterator[Callable[[Callable[[], None]], Future[None]]]:
    """Takes work: processes of their own, or this one where there is one job."""
    if jobs == 1:
        yield _here
        return
    executor: Executor = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        yield executor.submit
        executor.shutdown()
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise


def _here(work: Callable[[], None]) -> Future[None]:
    future: Future[None] = Future()
    try:
        work()
        future.set_result(None)
    except Exception as error:  # one run's: the others go on
        future.set_exception(error)
    return future


def _one(study: Path, model: str, seed: int, optimization: Optimization, threads: int) -> None:
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    train_study(study, [model], [seed], optimization)
    asked = study_probes(study)
    analyze(study / model / f"seed{seed}", asked, study_counts(study, asked, _WHAT.window), _WHAT)


def _collected(settings: ArchitecturesSettings, studies: dict[int, Path]) -> pd.DataFrame:
    """gap, model, seed, step, target, matched, mismatched, gain of what was asked for and is there."""
    tables = []
    for gap, study in studies.items():
        table = read_table(study, "gain")
        if len(table):
            asked = table["model"].isin(settings.models) & (table["seed"] < settings.seeds)
            tables.append(table[asked].assign(gap=gap))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _write(
    out: Path,
    settings: ArchitecturesSettings,
    studies: dict[int, Path],
    parameters: dict[str, int],
    gains: pd.DataFrame,
) -> None:
    of_step = settings.optimization.batch_size * settings.optimization.length
    training = over_training(gains).assign(tokens=lambda table: table["step"] * of_step)
    distances = {gap: _distance(study) for gap, study in studies.items()}
    versions = {
        "symground": symground.__version__, "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip
    finished = {
        f"gap-{gap}/{model}/seed{seed}": checkpoint_steps(studies[gap] / model / f"seed{seed}")
        for gap in studies
        for model in settings.models
        for seed in range(settings.seeds)
    }
    asked = {f.name: asdict(settings)[f.name] for f in fields(ArchitecturesSettings)}  # not where it is written
    content = {
        "settings": asked, "versions": versions, "parameters": parameters, "tokens_per_step": of_step,
        "distance": distances, "checkpoints": finished, "rows": training.to_dict("records"),
    }  # fmt: skip
    write_json(out / "architectures.json", content)
    text = markdown(training, parameters, distances)
    (out / "architectures.md").write_text(text, encoding="utf-8")
    (out / "architectures.svg").write_text(gains_over_gaps(training), encoding="utf-8")
    print(text)


def _distance(study: Path) -> float:
    """Mean distance in tokens from the ENV noun to the prediction position of a study's probes."""
    examples = study_probes(study).matched()
    noun = examples.query_masks["env"].int().argmax(1)
    return float((examples.prediction - noun).float().mean())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
