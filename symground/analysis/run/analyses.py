"""The analyses of one model, each as tables."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.causal import intervene, steering, sweep_heads
from symground.analysis.heads import DENOMINATORS, KINDS, head_shares, monitor, share_table
from symground.analysis.probing import Probes, score_to_parquet
from symground.analysis.results import partial_scores
from symground.analysis.run.settings import MeasureSettings
from symground.analysis.statistics import cooccurrence_r2, gain, gain_by_context
from symground.analysis.tracing import TunedLens, lens_gain, saliency_by_region, saliency_maps, trace
from symground.data import Corpus
from symground.files import replacing

Frames = dict[str, pd.DataFrame]
#: Random draws of control heads per factor of steering.
STEERED = 20


@dataclass
class Subject:
    """One model under the name of its rows in the tables; it is loaded when an analysis first needs it."""

    study: Path
    name: str
    seed: int
    step: int
    probes: Probes
    counts: pd.DataFrame | None
    """From :func:`symground.cooccurrence`; None if the training corpus is not known."""
    settings: MeasureSettings
    load: Callable[[], PreTrainedModel]
    text: Callable[[], Corpus | Tensor]
    """Text to fit lenses on."""
    pieces: Callable[[Sequence[int]], list[str]]
    """The text of each token of ids."""

    @cached_property
    def model(self) -> PreTrainedModel:
        return self.load()

    @property
    def used(self) -> Probes:
        """The probes of interventions and sweeps."""
        return self.probes.take_contexts(range(len(self.probes.contexts))[: self.settings.intervene_contexts])

    def partial(self, what: str) -> Path:
        """The folder of an analysis while it runs. It is kept if the analysis is interrupted."""
        (folder,) = partial_scores(self.study, self.name, self.seed, str(self.step), what)
        return folder

    @property
    def scores(self) -> Path:
        return self.partial(self.probes.fingerprint()[:12])

    @property
    def intervened(self) -> Path:
        return self.partial("interventions")


def behaviour(at: Subject) -> Frames:
    if at.settings.again:
        shutil.rmtree(at.scores, ignore_errors=True)
    score_to_parquet(at.model, at.probes, at.scores)
    scores = pd.read_parquet(at.scores).sort_values("context", kind="stable", ignore_index=True)
    gains = gain(scores)
    found = {"surprisal": scores, "contexts": gain_by_context(scores), "gain": gains}
    return found if at.counts is None else {**found, "r2": cooccurrence_r2(gains, at.counts)}


def where(at: Subject) -> Frames:
    settings = at.settings
    traced = trace(at.model, at.probes)
    regions = saliency_by_region(traced).rename("value").to_dataframe().reset_index()
    found = []
    for kind in KINDS:
        for denominator in DENOMINATORS:
            shares = head_shares(traced, kind, denominator).reset_coords(drop=True)
            frame = shares.to_dataframe().reset_index()
            frame = frame[frame["share"] >= settings.threshold]
            found.append(frame.assign(kind=kind, denominator=denominator))
    heads = pd.concat(found, ignore_index=True)[["example", "kind", "denominator", "layer", "head", "share"]]
    null = trace(at.model, at.probes.mismatched(), saliency=False)
    return {
        "saliency": regions[["layer", "region", "value"]].assign(examples=traced.sizes["example"]),
        "heads": heads,
        "shares": share_table(traced, null, settings.threshold),
        "maps": saliency_maps(at.model, at.probes, at.pieces, settings.map_nouns, settings.map_contexts),
    }


def lenses(at: Subject) -> Frames:
    fitted = TunedLens.fit(at.model, at.text(), steps=at.settings.lens_fit)
    frames = [
        lens_gain(at.model, at.probes, lens).assign(lens=name) for name, lens in (("tuned", fitted), ("logit", None))
    ]
    return {"lens": pd.concat(frames, ignore_index=True)[["lens", "depth", "target", "matched", "mismatched", "gain"]]}


def interventions(at: Subject) -> Frames:
    settings = at.settings
    if settings.again:
        shutil.rmtree(at.intervened, ignore_errors=True)

    def of(selection: str, span: int, positions: str, mode: str, match: str) -> pd.DataFrame:
        return intervene(
            at.model, at.used.with_span(span), settings.kinds, denominator=settings.denominators, selection=selection,
            threshold=settings.threshold, positions=positions, mode=mode, match=None if match == "none" else match,
            draws=settings.draws,
        )  # fmt: skip

    asked = product(settings.selection, settings.spans, settings.positions, settings.mode, settings.match)
    rows = [_kept(at, [*each], lambda each=each: of(*each)) for each in asked]  # type: ignore[misc]
    # The report corrects the p-values over all checkpoints of the table, not over one of them.
    return {"interventions": pd.concat(rows, ignore_index=True).drop(columns="p_holm")}


def _kept(at: Subject, each: Sequence[object], make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The rows of one intervention, from its file if an interrupted analysis wrote it."""
    s = at.settings
    key = repr((at.used.fingerprint(), s.kinds, s.denominators, s.threshold, s.draws, each))
    file = at.intervened / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.parquet"
    if not file.is_file():
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            found.to_parquet(partial, index=False)
    return pd.read_parquet(file)


def sweep(at: Subject) -> Frames:
    swept = sweep_heads(at.model, at.used, mode=at.settings.mode[0])
    table = swept.to_dataframe().dropna().reset_index()[["layer", "head", "effect", "first_order"]]
    return {"sweep": table.assign(examples=len(at.used))}


def monitored(at: Subject) -> Frames:
    if len(at.used.contexts) < 2:
        return {}
    threshold = at.settings.threshold
    detected = monitor(at.model, at.probes, threshold=threshold)
    steered = steering(at.model, at.used, threshold=threshold, draws=STEERED)
    return {"monitor": detected.detectors, "calibration": detected.calibration, "steering": steered}


#: Analysis → (whether it needs heads, the function that runs it).
RUN: dict[str, tuple[bool, Callable[[Subject], Frames]]] = {
    "surprisal": (False, behaviour),
    "saliency": (True, where),
    "lens": (False, lenses),
    "interventions": (True, interventions),
    "sweep": (True, sweep),
    "monitor": (True, monitored),
}
