"""Runs every analysis over the checkpoints of one run, and saves the study's result tables."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel

from symground.analysis.causal import MODES, intervene, steering, sweep_heads
from symground.analysis.heads import (
    DENOMINATORS,
    INTERVENED,
    KINDS,
    POSITIONS,
    SELECTIONS,
    head_shares,
    monitor,
    share_table,
)
from symground.analysis.probing import Probes, score_to_parquet
from symground.analysis.results import TABLES, Table, partial_scores
from symground.analysis.statistics import cooccurrence_r2, gain, gain_by_context
from symground.analysis.tracing import TunedLens, lens_gain, saliency_by_region, saliency_maps, trace
from symground.data import Corpus
from symground.errors import check_types, choice, integer, number, several
from symground.files import checkpoint_steps, evenly, model_and_seed, study_of
from symground.models import load, load_tokenizer, mixers
from symground.running import progress

_LENSES = 5  # checkpoints
_SAVE_EVERY = 20.0  # seconds of work that an interrupted analysis may lose


@dataclass(frozen=True)
class AnalysisSettings:
    """What is measured at the checkpoints."""

    what: tuple[str, ...] = ("surprisal", "saliency", "lens", "interventions", "sweep", "monitor")
    """"surprisal" (tables surprisal, contexts, gain, r2), "saliency" (saliency, heads, shares, maps), "lens",
    "interventions", "sweep", "monitor" (monitor, calibration, steering; it needs two contexts)."""
    window: int = 512
    """Largest distance of a co-occurrence in tokens."""
    threshold: float = 0.30
    """Smallest share of flow of an aggregate or gather head."""
    draws: int = 100
    """Random control draws per intervention."""
    spans: tuple[int, ...] = (0, 1)
    """Numbers of tokens after the ENV noun that interventions count as the noun; each has its own table rows."""
    saliency_steps: tuple[int, ...] = ()
    """Checkpoints at which saliency and heads are measured; all by default."""
    lens_steps: tuple[int, ...] = ()
    """Checkpoints at which the tuned lens is fitted; by default five, evenly spread, with the last one."""
    lens_fit: int = 100
    """Steps of Adam to fit a lens."""
    map_nouns: int = 8
    """Number of nouns whose single examples are kept for the report's saliency maps."""
    map_contexts: int = 2
    """Number of contexts of these examples."""
    intervene_steps: tuple[int, ...] = ()
    """Checkpoints at which to intervene, sweep and monitor; the last by default."""
    intervene_contexts: int | None = None
    """Number of contexts, from the first, for interventions, the sweep and steering; all by default."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Heads to silence: "aggregate", "gather", or "both" together."""
    selection: tuple[str, ...] = ("example",)
    """Silence the heads found in the "example" itself, or "held-out" ones found in the other half of the contexts; each
    value has its own table rows."""
    positions: tuple[str, ...] = ("all",)
    """Silence heads at "all" positions, or at the position of their kind ("own"); each value has its own table rows."""
    mode: tuple[str, ...] = ("zero",)
    """Replacement for a silenced head: "zero", "mean" or "resample"; each value has its own table rows, and the sweep
    takes the first."""
    match: str = "none"
    """Control heads from all layers ("none"), from the same "layer", or with an output of about the same "norm"."""
    again: bool = False
    """Repeat analyses that the tables already have (after a change of these settings, for example)."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in self.what:
            choice("what", name, _ANALYSES)
        if not self.spans:
            raise ValueError("spans: expected at least one number, got none")
        for name in ("spans", "saliency_steps", "lens_steps", "intervene_steps"):
            for value in getattr(self, name):
                integer(name, value, 0)
        for name, known in (
            ("selection", SELECTIONS), ("kinds", INTERVENED), ("positions", POSITIONS), ("mode", MODES),
        ):  # fmt: skip
            several(name, getattr(self, name), known)
        choice("match", self.match, ("none", "layer", "norm"))
        for name in ("window", "draws", "lens_fit", "map_nouns", "map_contexts", "intervene_contexts"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1)
        number("threshold", self.threshold, "(0, 1]")


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
    due = {name: checkpoints_of(name, steps, settings) for name in settings.what}
    for name in ("saliency_steps", "lens_steps", "intervene_steps"):
        unknown = [step for step in getattr(settings, name) if step not in steps]
        if unknown:
            raise ValueError(f"{name}: {run} has checkpoints at {', '.join(map(str, steps))}; got {unknown}")
    steps = [step for step in steps if only is None or step in only]
    tables = {name: Table(study, name) for name in TABLES}
    saved, left, scored = time.monotonic(), 0, list[Path]()
    with progress(f"analyze {model_name}/seed{seed}", len(steps)) as bar:
        try:
            for step in steps:
                checkpoint = _Checkpoint(Path(run), step, study, probes, counts, settings)
                for name, (needs_heads, last_table, analysis) in _ANALYSES.items():
                    if step not in due.get(name, ()):
                        continue
                    if tables[last_table].has(model_name, seed, step) and not settings.again:
                        left += 1
                    elif not needs_heads or mixers(checkpoint.model):
                        frames = analysis(checkpoint)
                        for table in sorted(frames, key=_LAST_TABLES.__contains__):
                            tables[table].add(frames[table], model_name, seed, step)
                        if name == "surprisal":
                            scored.append(checkpoint.scores)
                if time.monotonic() - saved > _SAVE_EVERY:
                    _save(tables, scored)
                    saved = time.monotonic()
                bar.advance()
        finally:
            _save(tables, scored)
    return left


def _save(tables: dict[str, Table], scored: list[Path]) -> None:
    """Save the tables, and remove the folders of the scores that they now have.

    The last table of an analysis marks it as done. It is saved after the others, so an analysis that was interrupted is
    repeated.
    """
    for name in sorted(tables, key=_LAST_TABLES.__contains__):
        tables[name].save()
    for folder in scored:
        shutil.rmtree(folder, ignore_errors=True)
    scored.clear()


def checkpoints_of(what: str, steps: Sequence[int], settings: AnalysisSettings) -> list[int]:
    """The checkpoints of a run at which the analysis ``what`` is due."""
    if what == "surprisal":
        return list(steps)
    if what == "saliency":
        return list(settings.saliency_steps or steps)
    if what == "lens":
        return list(settings.lens_steps or evenly(steps, _LENSES))
    return list(settings.intervene_steps or steps[-1:])


@dataclass
class _Checkpoint:
    """One checkpoint with the settings of its analyses; the model is loaded when an analysis first needs it."""

    run: Path
    step: int
    study: Path
    probes: Probes
    counts: pd.DataFrame
    settings: AnalysisSettings

    @cached_property
    def model(self) -> PreTrainedModel:
        return load(self.run, self.step)

    @cached_property
    def scores(self) -> Path:
        """The folder of the surprisals while they are scored."""
        name, seed = model_and_seed(self.run)
        (folder,) = partial_scores(self.study, name, seed, str(self.step), self.probes.fingerprint()[:12])
        return folder

    @property
    def used(self) -> Probes:
        """The probes of interventions and sweeps."""
        return self.probes.take_contexts(range(len(self.probes.contexts))[: self.settings.intervene_contexts])


_Frames = dict[str, pd.DataFrame]


def _behaviour(at: _Checkpoint) -> _Frames:
    if at.settings.again:
        shutil.rmtree(at.scores, ignore_errors=True)
    score_to_parquet(at.model, at.probes, at.scores)
    scores = pd.read_parquet(at.scores).sort_values("context", kind="stable", ignore_index=True)
    gains = gain(scores)
    return {
        "surprisal": scores,
        "contexts": gain_by_context(scores),
        "gain": gains,
        "r2": cooccurrence_r2(gains, at.counts),
    }


def _where(at: _Checkpoint) -> _Frames:
    settings = at.settings
    traced = trace(at.model, at.probes)
    regions = saliency_by_region(traced).rename("value").to_dataframe().reset_index()
    found = []
    for kind in KINDS:
        for denominator in DENOMINATORS:
            shares = head_shares(traced, kind, denominator).drop_vars(["context", "noun", "prediction"])
            frame = shares.to_dataframe().reset_index()
            frame = frame[frame["share"] >= settings.threshold]
            found.append(frame.assign(kind=kind, denominator=denominator))
    heads = pd.concat(found, ignore_index=True)[["example", "kind", "denominator", "layer", "head", "share"]]
    null = trace(at.model, at.probes.mismatched(), saliency=False)
    return {
        "saliency": regions[["layer", "region", "value"]].assign(examples=traced.sizes["example"]),
        "heads": heads,
        "shares": share_table(traced, null, settings.threshold),
        "maps": saliency_maps(at.model, at.probes, _tokens(at.study), settings.map_nouns, settings.map_contexts),
    }


@lru_cache(maxsize=1)
def _tokens(study: Path) -> list[str]:
    tokenizer = load_tokenizer(study)
    return list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))


@lru_cache(maxsize=1)
def _corpus(study: Path) -> Corpus:
    return Corpus.load(study / "data", study)


def _lenses(at: _Checkpoint) -> _Frames:
    fitted = TunedLens.fit(at.model, _corpus(at.study), steps=at.settings.lens_fit)
    frames = [
        lens_gain(at.model, at.probes, lens).assign(lens=name) for name, lens in (("tuned", fitted), ("logit", None))
    ]
    return {"lens": pd.concat(frames, ignore_index=True)[["lens", "depth", "target", "matched", "mismatched", "gain"]]}


def _interventions(at: _Checkpoint) -> _Frames:
    settings = at.settings
    rows = [
        intervene(
            at.model,
            at.used.with_span(span),
            settings.kinds,
            selection=settings.selection,
            threshold=settings.threshold,
            positions=positions,
            mode=mode,
            match=None if settings.match == "none" else settings.match,
            draws=settings.draws,
        )
        for span, positions, mode in product(settings.spans, settings.positions, settings.mode)
    ]
    # The report corrects the p-values over all checkpoints of the table, not over one of them.
    return {"interventions": pd.concat(rows, ignore_index=True).drop(columns="p_holm")}


def _sweep(at: _Checkpoint) -> _Frames:
    swept = sweep_heads(at.model, at.used, mode=at.settings.mode[0])
    table = swept.to_dataframe().dropna().reset_index()[["layer", "head", "effect", "first_order"]]
    return {"sweep": table.assign(examples=len(at.used))}


def _monitor(at: _Checkpoint) -> _Frames:
    if len(at.used.contexts) < 2:
        return {}
    threshold = at.settings.threshold
    detected = monitor(at.model, at.probes, threshold=threshold)
    steered = steering(at.model, at.used, threshold=threshold)
    return {"monitor": detected.detectors, "calibration": detected.calibration, "steering": steered}


#: Analysis → (whether it needs heads, its last table, which marks it as done, the function that runs it).
_ANALYSES: dict[str, tuple[bool, str, Callable[[_Checkpoint], _Frames]]] = {
    "surprisal": (False, "r2", _behaviour),
    "saliency": (True, "saliency", _where),
    "lens": (False, "lens", _lenses),
    "interventions": (True, "interventions", _interventions),
    "sweep": (True, "sweep", _sweep),
    "monitor": (True, "monitor", _monitor),
}
_LAST_TABLES = frozenset(last for _, last, _ in _ANALYSES.values())
