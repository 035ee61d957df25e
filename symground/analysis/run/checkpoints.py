"""The analyses of the checkpoints of one run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd

from symground.analysis.probing import Probes
from symground.analysis.run.analyses import Subject
from symground.analysis.run.measuring import measure
from symground.analysis.run.settings import AnalysisSettings
from symground.data import Corpus
from symground.files import checkpoint_steps, evenly, model_and_seed, study_of
from symground.models import load, load_tokenizer

_LENSES = 5  # checkpoints


def analyze(
    run: str | Path,
    probes: Probes,
    counts: pd.DataFrame,
    settings: AnalysisSettings,
    only: Collection[int] | None = None,
) -> int:
    """Analyse every checkpoint of ``run`` and fill the study's tables; rows that a table has are not recomputed.

    Args:
        run: the run's folder.
        probes: they are scored at every checkpoint.
        counts: from :func:`symground.cooccurrence`.
        settings: what to measure.
        only: analyse these checkpoints only; None for all.

    Returns:
        The number of (checkpoint, analysis) pairs that were skipped because the tables already have them.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        ValueError: the settings name a step at which the run has no checkpoint.
    """
    study, (model_name, seed), steps = study_of(run), model_and_seed(run), checkpoint_steps(run)
    if not steps:
        raise FileNotFoundError(f"{run} has no checkpoint yet")
    for name in ("saliency_steps", "lens_steps", "intervene_steps"):
        unknown = [step for step in getattr(settings, name) if step not in steps]
        if unknown:
            raise ValueError(f"{name}: {run} has checkpoints at {', '.join(map(str, steps))}; got {unknown}")
    of_name = {name: checkpoints_of(name, steps, settings) for name in settings.what}
    due = [
        (
            Subject(study, model_name, seed, step, probes, counts, settings, partial(load, run, step),
                    lambda: _corpus(study), lambda ids: _pieces(study, ids)),
            [name for name, at in of_name.items() if step in at],
        )
        for step in steps
        if only is None or step in only
    ]  # fmt: skip
    return measure(f"analyze {model_name}/seed{seed}", study, due)


def checkpoints_of(what: str, steps: Sequence[int], settings: AnalysisSettings) -> list[int]:
    """The checkpoints of a run at which the analysis ``what`` is due."""
    if what == "surprisal":
        return list(steps)
    if what == "saliency":
        return list(settings.saliency_steps or steps)
    if what == "lens":
        return list(settings.lens_steps or evenly(steps, _LENSES))
    return list(settings.intervene_steps or steps[-1:])


@lru_cache(maxsize=1)
def _tokens(study: Path) -> list[str]:
    tokenizer = load_tokenizer(study)
    return list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))


def _pieces(study: Path, ids: Sequence[int]) -> list[str]:
    tokens = _tokens(study)
    return [tokens[i] if i < len(tokens) else f"patch {i - len(tokens)}" for i in ids]


@lru_cache(maxsize=1)
def _corpus(study: Path) -> Corpus:
    return Corpus.load(study / "data", study)
