"""Every analysis over the checkpoints of one run, into the study's result tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel

from symground.analysis.gain import gain
from symground.analysis.heads import DENOMINATORS, KINDS, head_shares
from symground.analysis.intervene import intervene
from symground.analysis.probes import Probes
from symground.analysis.r2 import cooccurrence_r2
from symground.analysis.results import Table, keyed, save_all
from symground.analysis.score import score
from symground.analysis.trace import saliency_by_region, trace
from symground.folders import checkpoint_steps, model_and_seed, study_of
from symground.models import load, mixers
from symground.progress import progress

WHAT = ("surprisal", "saliency", "interventions")
_SAVE_EVERY = 20.0  # seconds: what an interrupted analysis may lose


def analyze(
    run: str | Path,
    probes: Probes,
    counts: pd.DataFrame,
    what: Sequence[str] = WHAT,
    *,
    threshold: float = 0.30,
    draws: int = 100,
    spans: Sequence[int] = (0, 1),
    intervene_steps: Sequence[int] | None = None,
    intervene_contexts: int | None = None,
) -> None:
    """Analyse every checkpoint of ``run`` and add to the study's tables; what a table already has is not redone.

    Args:
        run: the run's folder.
        probes: scored at every checkpoint.
        counts: from :func:`symground.cooccurrence`.
        what: "surprisal" (tables surprisal, gain, r2), "saliency" (saliency, heads), "interventions".
        threshold: the share that makes an aggregate or gather head, in the table heads and for interventions.
        draws: random controls per intervention.
        spans: interventions are repeated with each of these spans of the ENV noun.
        intervene_steps: checkpoints to intervene at; None: the last.
        intervene_contexts: use only the first so many contexts for interventions.

    Raises:
        ValueError: an unknown analysis, or a step that the run has no checkpoint of.
    """
    for name in what:
        if name not in WHAT:
            raise ValueError(f"what: expected some of {', '.join(WHAT)}; got {name!r}")
    study, (model_name, seed), steps = study_of(run), model_and_seed(run), checkpoint_steps(run)
    if intervene_steps is None:
        intervene_steps = steps[-1:]
    unknown = [step for step in intervene_steps if step not in steps]
    if unknown:
        raise ValueError(f"intervene_steps: {run} has checkpoints at {', '.join(map(str, steps))}; got {unknown}")
    tables = {name: Table(study, name) for name in ("surprisal", "gain", "r2", "saliency", "heads", "interventions")}
    saved = time.monotonic()
    with progress(f"analyze {model_name}/seed{seed}", len(steps)) as bar:
        try:
            for step in steps:
                model: PreTrainedModel | None = None

                def due(name: str, table: str, at: int = step) -> bool:
                    return name in what and not tables[table].has(model_name, seed, at)

                if due("surprisal", "r2"):
                    model = load(run, step)
                    for table, frame in _behaviour(model, probes, counts).items():
                        tables[table].add(keyed(frame, model_name, seed, step))
                if due("saliency", "heads"):
                    model = model or load(run, step)
                    if mixers(model):
                        for table, frame in _where(model, probes, threshold).items():
                            tables[table].add(keyed(frame, model_name, seed, step))
                if step in intervene_steps and due("interventions", "interventions"):
                    model = model or load(run, step)
                    if mixers(model):
                        used = probes.take_contexts(range(len(probes.contexts))[:intervene_contexts])
                        frame = pd.concat(
                            [
                                intervene(model, used.with_span(span), list(KINDS), threshold=threshold, draws=draws)
                                for span in spans
                            ],
                            ignore_index=True,
                        )
                        tables["interventions"].add(keyed(frame, model_name, seed, step))
                if time.monotonic() - saved > _SAVE_EVERY:
                    save_all(tables.values())
                    saved = time.monotonic()
                bar.advance()
        finally:
            save_all(tables.values())


def _behaviour(model: PreTrainedModel, probes: Probes, counts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    scores = score(model, probes)
    gains = gain(scores)
    return {"surprisal": scores, "gain": gains, "r2": cooccurrence_r2(gains, counts)}


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
