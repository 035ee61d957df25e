"""Every analysis over the checkpoints of one run, into the study's result tables."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel

from symground.analysis.fills import MODES
from symground.analysis.gain import gain
from symground.analysis.heads import DENOMINATORS, KINDS, head_shares
from symground.analysis.intervene import intervene
from symground.analysis.probes import Probes
from symground.analysis.r2 import cooccurrence_r2
from symground.analysis.results import TABLES, Table, partial_scores, save_all
from symground.analysis.score import score_to_parquet
from symground.analysis.selection import POSITIONS, SELECTIONS
from symground.analysis.sweep import sweep_heads
from symground.analysis.trace import saliency_by_region, trace
from symground.folders import checkpoint_steps, model_and_seed, study_of
from symground.models import load, mixers
from symground.progress import progress

WHAT = ("surprisal", "saliency", "interventions", "sweep")
_SAVE_EVERY = 20.0  # seconds: what an interrupted analysis may lose


@dataclass(frozen=True)
class AnalysisSettings:
    """What is measured at the checkpoints."""

    what: tuple[str, ...] = WHAT
    """"surprisal" (tables surprisal, gain, r2), "saliency" (saliency, heads), "interventions", "sweep"."""
    window: int = 512
    """Largest distance in tokens of a co-occurrence."""
    threshold: float = 0.30
    """Smallest share of flow that makes an aggregate or gather head."""
    draws: int = 100
    """Random control draws per intervention."""
    spans: tuple[int, ...] = (0, 1)
    """Interventions count so many tokens after the ENV noun as the noun; one table row for each."""
    intervene_steps: tuple[int, ...] = ()
    """Checkpoints to intervene and sweep at; the last by default."""
    intervene_contexts: int | None = None
    """Use only the first so many contexts for interventions and the sweep; all by default."""
    selection: tuple[str, ...] = ("example",)
    """Silence the heads found in the "example" itself, "held-out" ones found in the other half of the contexts, or each
    in rows of their own."""
    positions: str = "all"
    """Silence heads everywhere, or only where their kind is defined ("own")."""
    mode: str = "zero"
    """What stands in for a silenced head: "zero", "mean" or "resample"."""
    match: str = "none"
    """Control heads from everywhere ("none"), from the same "layer", or with an output as long ("norm")."""
    again: bool = False
    """Redo what the tables already have (after a change of these settings, say)."""

    def __post_init__(self) -> None:
        for name in self.what:
            if name not in WHAT:
                raise ValueError(f"what: expected some of {', '.join(WHAT)}; got {name!r}")
        if not self.spans or min(self.spans) < 0:
            raise ValueError(f"spans: expected numbers of at least 0, got {self.spans}")
        for name, values, known in (
            ("selection", self.selection, SELECTIONS),
            ("positions", (self.positions,), POSITIONS),
            ("mode", (self.mode,), MODES),
            ("match", (self.match,), ("none", "layer", "norm")),
        ):
            if not values or not set(values) <= set(known):
                raise ValueError(f"{name}: expected {' or '.join(map(repr, known))}, got {values}")
        for name in ("window", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.intervene_contexts is not None and self.intervene_contexts < 1:
            raise ValueError(f"intervene_contexts: expected at least 1, got {self.intervene_contexts}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold: expected a share in (0, 1], got {self.threshold}")


def analyze(
    run: str | Path,
    probes: Probes,
    counts: pd.DataFrame,
    settings: AnalysisSettings,
    only: Collection[int] | None = None,
) -> int:
    """Analyse every checkpoint of ``run`` and add to the study's tables; what a table already has is not redone.

    Args:
        run: the run's folder.
        probes: scored at every checkpoint.
        counts: from :func:`symground.cooccurrence`.
        settings: what to measure.
        only: at these checkpoints; None for all.

    Returns:
        How many (checkpoint, analysis) pairs were already there and left.

    Raises:
        ValueError: a step to intervene at that the run has no checkpoint of.
    """
    study, (model_name, seed), steps = study_of(run), model_and_seed(run), checkpoint_steps(run)
    intervene_steps = settings.intervene_steps or steps[-1:]
    unknown = [step for step in intervene_steps if step not in steps]
    if unknown:
        raise ValueError(f"intervene_steps: {run} has checkpoints at {', '.join(map(str, steps))}; got {unknown}")
    steps = [step for step in steps if only is None or step in only]
    tables = {name: Table(study, name) for name in TABLES}
    saved, left, scored = time.monotonic(), 0, list[Path]()
    with progress(f"analyze {model_name}/seed{seed}", len(steps)) as bar:
        try:
            for step in steps:
                model: PreTrainedModel | None = None

                def due(name: str, table: str, at: int = step) -> bool:
                    there = tables[table].has(model_name, seed, at)
                    nonlocal left
                    left += name in settings.what and there and not settings.again
                    return name in settings.what and (settings.again or not there)

                if due("surprisal", "r2"):
                    model = load(run, step)
                    (folder,) = partial_scores(study, model_name, seed, str(step), probes.fingerprint()[:12])
                    if settings.again:
                        shutil.rmtree(folder, ignore_errors=True)
                    for table, frame in _behaviour(model, probes, counts, folder).items():
                        tables[table].add(frame, model_name, seed, step)
                    scored.append(folder)
                if due("saliency", "saliency"):
                    model = model or load(run, step)
                    if mixers(model):
                        for table, frame in _where(model, probes, settings.threshold).items():
                            tables[table].add(frame, model_name, seed, step)
                if step in intervene_steps and due("interventions", "interventions"):
                    model = model or load(run, step)
                    if mixers(model):
                        frame = _interventions(model, probes, settings)
                        tables["interventions"].add(frame, model_name, seed, step)
                if step in intervene_steps and due("sweep", "sweep"):
                    model = model or load(run, step)
                    if mixers(model):
                        tables["sweep"].add(_sweep(model, probes, settings), model_name, seed, step)
                if time.monotonic() - saved > _SAVE_EVERY:
                    _save(tables.values(), scored)
                    saved = time.monotonic()
                bar.advance()
        finally:
            _save(tables.values(), scored)
    return left


def _save(tables: Iterable[Table], scored: list[Path]) -> None:
    """Save the tables; the scores that are in them now need no folder of their own any more."""
    save_all(tables)
    for folder in scored:
        shutil.rmtree(folder, ignore_errors=True)
    scored.clear()


def _behaviour(model: PreTrainedModel, probes: Probes, counts: pd.DataFrame, folder: Path) -> dict[str, pd.DataFrame]:
    score_to_parquet(model, probes, folder)
    scores = pd.read_parquet(folder).sort_values("context", kind="stable", ignore_index=True)
    gains = gain(scores)
    return {"surprisal": scores, "gain": gains, "r2": cooccurrence_r2(gains, counts)}


def _used(probes: Probes, settings: AnalysisSettings) -> Probes:
    return probes.take_contexts(range(len(probes.contexts))[: settings.intervene_contexts])


def _interventions(model: PreTrainedModel, probes: Probes, settings: AnalysisSettings) -> pd.DataFrame:
    rows = [
        intervene(
            model,
            _used(probes, settings).with_span(span),
            list(KINDS),
            selection=settings.selection,
            threshold=settings.threshold,
            positions=settings.positions,
            mode=settings.mode,
            match=None if settings.match == "none" else settings.match,
            draws=settings.draws,
        )
        for span in settings.spans
    ]
    # Corrected where the whole table is seen: over all its checkpoints, not over one of them.
    return pd.concat(rows, ignore_index=True).drop(columns="p_holm")


def _sweep(model: PreTrainedModel, probes: Probes, settings: AnalysisSettings) -> pd.DataFrame:
    swept = sweep_heads(model, _used(probes, settings), mode=settings.mode)
    return swept.to_dataframe().dropna().reset_index()[["layer", "head", "effect", "first_order"]]


def _where(model: PreTrainedModel, probes: Probes, threshold: float) -> dict[str, pd.DataFrame]:
    traced = trace(model, probes)
    regions = saliency_by_region(traced).rename("value").to_dataframe().reset_index()
    found = []
    for kind in KINDS:
        for denominator in DENOMINATORS:
            shares = head_shares(traced, kind, denominator).drop_vars(["context", "noun", "prediction"])
            frame = shares.to_dataframe().reset_index()
            frame = frame[frame["share"] >= threshold]
            found.append(frame.assign(kind=kind, denominator=denominator))
    heads = pd.concat(found, ignore_index=True)[["example", "kind", "denominator", "layer", "head", "share"]]
    return {"saliency": regions[["layer", "region", "value"]], "heads": heads}
