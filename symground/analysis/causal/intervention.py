"""The study's causal table: the effect of silencing the heads found in each example, and as many random others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import PreTrainedModel

from symground.analysis.causal.controls import MATCHES, Controls, enough
from symground.analysis.causal.fills import MODES, aligned
from symground.analysis.causal.silenced import Behaviour, Plan, behaviour
from symground.analysis.heads import DENOMINATORS, INTERVENED, POSITIONS, SELECTIONS, SilencedHeads, silenced_heads
from symground.analysis.probing import Asked, Examples, check_asked
from symground.analysis.statistics import bootstrap_interval, cohens_d, holm
from symground.analysis.tracing import trace
from symground.errors import choice, flag, integer, number, several
from symground.models import mixers
from symground.models.hooks import head_outputs
from symground.models.passes import check_weights
from symground.models.trials import hidden_states, readout
from symground.running import progress


def intervene(
    model: PreTrainedModel,
    probes: Asked,
    kind: str | Sequence[str] = "aggregate",
    *,
    denominator: str | Sequence[str] = ("row", "matrix"),
    selection: str | Sequence[str] = "example",
    threshold: float = 0.30,
    positions: str = "all",
    mode: str = "zero",
    match: str | None = None,
    draws: int = 100,
    seed: int = 0,
    batch_size: int = 1024,
    checkpoint: bool = False,
) -> pd.DataFrame:
    """Silence heads in each example and compare with as many random control heads.

    The study reports the surprisal of the matched target. Three further measures separate heads that ground the word
    from heads that matter to any word: the surprisal of the same target in a mismatched context, the gain between the
    two, and the surprisal of the context's own tokens.

    Args:
        model: attached, in evaluation.
        probes: their matched examples are used, and one mismatched example for each, whose ENV noun is drawn at random.
            Questions about images are grounded in the image, so their mismatched examples have another picture.
        kind: "aggregate", "gather", "both" together, or several of these.
        denominator: "row", "matrix", or several; see :func:`symground.find_heads`.
        selection: "example", the heads found in the example itself (the study's); "held-out", one set for each half of
            the contexts: the heads whose mean share in the other half reaches the threshold; or several.
        threshold: the smallest share of flow.
        positions: "all", or "own": each kind is silenced only at its own position, gather heads at the ENV noun,
            aggregate heads at the prediction position.
        mode: "zero" (the study's); "mean" over the matched examples; or "resample": a head's output in a matched
            example is replaced by that in its mismatched one, and the reverse.
        match: None draws controls from all layers; "layer" from each selected head's own layer; "norm" from heads whose
            output in the example has the same norm within a factor of 1.25.
        draws: how often the controls are drawn from the example's unselected heads.
        seed: of the controls, of the halves and of the mismatched contexts.
        batch_size: examples per forward pass; the trace takes at most 64.
        checkpoint: as for :func:`symground.trace`.

    Returns:
        A DataFrame with a row per selection, kind and denominator. Its columns:

        - kind, denominator; heads_per_example; mean_layer: the mean layer of the selected heads, from 0;
        - original, intervened, control: mean matched surprisals, nats; the control is the mean over draws and
          control_sd its standard deviation;
        - p: paired t-test over examples, intervened against original; NaN if no head was selected;
        - p_holm: p corrected for the rows of this table;
        - p_random: (1 + draws whose mean surprisal is not below the intervened one) / (1 + draws); NaN if ``short`` is
          more than a tenth of the examples, since such controls silence too few heads;
        - effect: intervened - original, nats; d: its Cohen's d over examples; effect_low, effect_high, d_low, d_high:
          their bootstrap intervals (95 %, resampling examples);
        - mismatched_*, gain_* (mismatched - matched), context_* (mean surprisal of the tokens before the target), nats:
          each original, intervened, control;
        - gain_p: paired t-test of the gain over nouns (each its mean over contexts), intervened against original. Heads
          with much flow matter to any word, so p and p_random are small even in models without the link. gain_p tests
          the link;
        - selection, positions, mode, match, span, examples, draws;
        - short: the number of examples that have fewer controls than selected heads in the worst draw. The control then
          silences the heads that remain. If no example has a control, all columns of the control are NaN.

    Raises:
        ValueError: fewer than one draw, an unknown value of kind, selection, positions, mode or match, or what trace,
            find_heads and ablate refuse.

    Source: arXiv 2510.13796, the intervention table; held-out selection after Kriegeskorte et al. 2009 ("Circular
    analysis in systems neuroscience"); p_random after Phipson and Smyth 2010.
    """
    check_weights(model)
    check_asked(probes, images=True)
    kinds, denominators = several("kind", kind, INTERVENED), several("denominator", denominator, DENOMINATORS)
    selections, threshold = several("selection", selection, SELECTIONS), number("threshold", threshold, "(0, 1]")
    for name, value, known in (("positions", positions, POSITIONS), ("mode", mode, MODES), ("match", match, MATCHES)):
        choice(name, value, known)
    draws, seed = integer("draws", draws, 1), integer("seed", seed, 0)
    batch_size, checkpoint = integer("batch_size", batch_size, 1), flag("checkpoint", checkpoint)
    traced = trace(model, probes, saliency=False, batch_size=min(batch_size, 64), checkpoint=checkpoint)
    chosen = [
        (s, k, d, silenced_heads(traced, k, d, threshold, s, positions, seed))
        for s, k, d in product(selections, kinds, denominators)
    ]
    measure = _Measure(model, probes, mode, seed, batch_size)
    norms = _norms(model, measure.matched, batch_size) if match == "norm" else None
    rows = []
    with progress("intervene", len(chosen) * (draws + 1) * measure.batches + measure.batches) as bar:
        original = measure([[]], bar.advance)
        for s, k, d, plan in chosen:
            controls, short = _controls(model, plan, match, norms, draws, seed)
            found = measure([plan, *controls], bar.advance)
            selected = any(own for silenced in plan for own in silenced.heads)
            rows.append(
                {
                    "kind": k,
                    "denominator": d,
                    **_layers(model, plan, len(measure.matched.input_ids)),
                    **_compared(original, found, measure.matched.noun, seed, selected, _drawn(controls, short)),
                    "selection": s,
                    "positions": positions,
                    "mode": mode,
                    "match": match or "none",
                    "span": probes.span,
                    "examples": len(measure.matched.input_ids),
                    "draws": draws,
                    "short": short,
                }
            )
    table = pd.DataFrame(rows)
    table.insert(list(table.columns).index("p") + 1, "p_holm", holm(table["p"].to_numpy(float)))
    return table


class _Measure:
    """Measures the matched and the mismatched examples under each plan."""

    def __init__(self, model: PreTrainedModel, probes: Asked, mode: str, seed: int, batch_size: int) -> None:
        self.matched, self.mismatched = probes.matched(), probes.mismatched(seed)
        if mode == "resample":
            aligned(self.matched, self.mismatched)
        self._model, self._probes, self._mode, self._batch = model, probes, mode, batch_size
        self.batches = 2 * -(-len(self.matched.input_ids) // batch_size)

    def __call__(self, plans: Sequence[Plan], done: Any) -> tuple[Behaviour, Behaviour]:
        pairs = ((self.matched, self.mismatched), (self.mismatched, self.matched))
        found = [
            behaviour(
                self._model, examples, plans, self._mode,
                {"zero": None, "mean": self._probes, "resample": other}[self._mode], self._batch, done,
            )
            for examples, other in pairs
        ]  # fmt: skip
        return found[0], found[1]


def _controls(
    model: PreTrainedModel,
    plan: Plan,
    match: str | None,
    norms: NDArray[np.float64] | None,
    draws: int,
    seed: int,
) -> tuple[list[Plan], int]:
    """``draws`` plans of control heads for a plan, and the number of examples that lack some in the worst draw."""
    everything = [(mixer.layer, head) for mixer in mixers(model) for head in range(mixer.heads)]
    selected = [
        frozenset().union(*of_example) for of_example in zip(*(silenced.heads for silenced in plan), strict=True)
    ]
    sources = [Controls(everything, silenced.heads, selected, match, norms) for silenced in plan]
    rng = np.random.default_rng(seed)
    plans: list[Plan] = []
    worst = 0
    for _ in range(draws):
        drawn = [source.draw(rng) for source in sources]
        plans.append([SilencedHeads(heads, silenced.where) for (heads, _), silenced in zip(drawn, plan, strict=True)])
        worst = max(worst, sum(map(any, zip(*(short for _, short in drawn), strict=True))))
    return plans, worst


def _drawn(controls: Sequence[Plan], short: int) -> tuple[bool, float]:
    """Whether any example of any draw has a control head, and the share of examples that lack some."""
    there = any(own for plan in controls for silenced in plan for own in silenced.heads)
    return there, short / len(controls[0][0].heads)


def _layers(model: PreTrainedModel, plan: Plan, examples: int) -> dict[str, float]:
    depth = {mixer.layer: mixer.depth for mixer in mixers(model)}
    layers = [depth[layer] for silenced in plan for own in silenced.heads for layer, _ in own]
    return {
        "heads_per_example": len(layers) / examples,
        "mean_layer": float(np.mean(layers)) if layers else np.nan,
    }


def _compared(
    original: tuple[Behaviour, Behaviour], found: tuple[Behaviour, Behaviour], noun: Sequence[str], seed: int,
    selected: bool, drawn: tuple[bool, float],
) -> dict[str, float]:  # fmt: skip
    """The columns that compare the original (one plan) with the interventions (the heads, then the draws).

    ``drawn`` is (whether any control was drawn, the share of examples that lack some).
    """
    before, matched = original[0].target[0], found[0].target
    after, of_draws = matched[0], matched[1:].mean(1)
    any_control = drawn[0] or not selected
    compared = selected and any_control and enough(drawn[1])
    difference = (after - before)[None]
    (low,), (high,) = bootstrap_interval(difference, seed=seed)
    (d_low,), (d_high,) = bootstrap_interval(difference, seed=seed, statistic=cohens_d)
    columns = {
        "original": before.mean(),
        "control": of_draws.mean() if any_control else np.nan,
        "control_sd": of_draws.std(ddof=1) if any_control and len(of_draws) > 1 else np.nan,
        "intervened": after.mean(),
        "p": stats.ttest_rel(after, before).pvalue if selected else np.nan,
        "p_random": (1 + (of_draws >= after.mean()).sum()) / (1 + len(of_draws)) if compared else np.nan,
        "effect": difference.mean(),
        "effect_low": low,
        "effect_high": high,
        "d": float(cohens_d(difference[0])),
        "d_low": d_low,
        "d_high": d_high,
    }
    measures = {
        "mismatched": (original[1].target, found[1].target),
        "gain": (original[1].target - original[0].target, found[1].target - matched),
        "context": (original[0].context, found[0].context),
    }
    for name, (of_original, of_plans) in measures.items():
        means = of_plans.mean(1)
        columns |= {
            f"{name}_original": of_original.mean(),
            f"{name}_control": means[1:].mean() if any_control else np.nan,
            f"{name}_intervened": means[0],
        }
    gain = measures["gain"][1][0] - measures["gain"][0][0]
    by_noun = pd.Series(gain).groupby(np.asarray(noun)).mean().to_numpy(float)
    tested = selected and len(by_noun) > 1
    columns["gain_p"] = float(stats.ttest_1samp(by_noun, 0.0).pvalue) if tested else np.nan
    return columns


def _norms(model: PreTrainedModel, examples: Examples, batch_size: int) -> NDArray[np.float64]:
    """[N, heads of all layers] mean norm of each head's output over the context's positions."""
    device, layers = readout(model).weight.device, mixers(model)
    examples, parts = examples.read_by(model), []
    for start in range(0, len(examples.input_ids), batch_size):
        part = slice(start, min(start + batch_size, len(examples.input_ids)))
        ids, p = (x[part].to(device) for x in (examples.input_ids, examples.prediction))
        with torch.no_grad(), head_outputs(layers) as found:
            hidden_states(model, ids, **examples.given(part, device))
        valid = torch.arange(ids.shape[1], device=device) <= p[:, None]  # [B,T]
        lengths = torch.cat([found[mixer.layer].double().norm(dim=-1) for mixer in layers], -1)  # [B,T,heads]
        parts.append((lengths * valid[..., None]).sum(1) / valid.sum(1, keepdim=True))
    return torch.cat(parts).cpu().numpy()
