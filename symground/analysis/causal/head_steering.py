"""Amplifying or silencing heads while the model chooses a word, and the effect on the grounded word."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from symground.analysis.causal.controls import Controls
from symground.analysis.causal.gates import Block, Heads, gates_of
from symground.analysis.heads import DENOMINATORS, silenced_heads
from symground.analysis.probing import AMONG, Asked, Choices, Examples, check_fits, choices
from symground.analysis.tracing import trace
from symground.errors import choice, described, flag, integer, is_list, number, require
from symground.models import mixers
from symground.models.passes import gated
from symground.running import progress

FACTORS = (0.0, 0.5, 1.5, 2.0, 3.0)


def steer(model: PreTrainedModel, heads: Heads | Sequence[Heads], factor: float) -> AbstractContextManager[None]:
    """A context manager: within its block, the given heads' outputs are multiplied before the output projection.

    Args:
        model: attached.
        heads: (layer, head) pairs for all examples, or a collection of pairs for each example of the batch.
        factor: above 1 amplifies, 0 silences. It applies to every pass within the block: single forward passes, text
            generation with or without a cache, traces.

    Blocks combine and end as those of :func:`symground.ablate` do.

    Raises:
        ValueError: a layer or head that does not exist, a model without heads, or a factor that is not finite.
    """
    gates = gates_of(model, heads, number("factor", factor))
    return Block(lambda: gated(model, gates))


def steering(
    model: PreTrainedModel,
    probes: Asked,
    factors: Sequence[float] = FACTORS,
    *,
    among: str = "targets",
    denominator: str = "row",
    threshold: float = 0.30,
    draws: int = 20,
    seed: int = 0,
    batch_size: int = 64,
    checkpoint: bool = False,
) -> pd.DataFrame:
    """How often the model chooses the word in the scene, with the outputs of aggregate heads multiplied by a factor.

    The heads for each half of the contexts are selected on the other half (``selection="held-out"`` of
    :func:`symground.intervene`), so no head is selected on the examples that it is measured on.

    Args:
        model: attached, in evaluation.
        probes: their matched examples are used; at least two contexts.
        factors: factors for the heads' outputs; 0 silences, above 1 amplifies.
        among: the words that the model chooses from: "targets", the target words, or the whole "vocabulary".
        denominator: of the shares of flow.
        threshold: the smallest mean share.
        draws: random draws of as many other heads, whose outputs are multiplied by the same factor.
        seed: of the halves and of the draws.
        batch_size: examples per pass.
        checkpoint: as for :func:`symground.trace`.

    Returns:
        A DataFrame with a row per factor; factor 1 is the unchanged model. Its columns:

        - factor;
        - accuracy: the share of examples whose likeliest word is in the scene;
        - control, control_sd: accuracy with random heads, mean and standard deviation over draws; NaN if no example
          has another head to draw;
        - short: the number of examples with fewer controls than heads in the worst draw;
        - p: McNemar's exact test against the unchanged model;
        - surprisal: of the word in the scene, nats;
        - heads_per_example, examples, contexts, nouns, draws, among, denominator.

    Raises:
        ValueError: no factor, fewer than one draw or two contexts, or what trace refuses.

    Source: McNemar 1947.
    """
    mixers(model)
    check_fits(model, probes, images=True)
    if not is_list(factors) or not len(factors):
        got = list(factors) if is_list(factors) else described(factors)
        raise ValueError(f"factors: expected a list of at least one number, got {got}")
    wanted = sorted({1.0, *(number("factors", factor) for factor in factors)})
    among, denominator = choice("among", among, AMONG), choice("denominator", denominator, DENOMINATORS)
    threshold, draws = number("threshold", threshold, "(0, 1]"), integer("draws", draws, 1)
    seed, batch_size = integer("seed", seed, 0), integer("batch_size", batch_size, 1)
    checkpoint = flag("checkpoint", checkpoint)
    examples = probes.matched()
    traced = trace(model, probes, saliency=False, batch_size=batch_size, checkpoint=checkpoint)
    (silenced,) = silenced_heads(traced, "aggregate", denominator, threshold, "held-out", "all", seed)
    everything = [(mixer.layer, head) for mixer in mixers(model) for head in range(mixer.heads)]
    random, rng = Controls(everything, silenced.heads, silenced.heads), np.random.default_rng(seed)
    before = choices(model, examples, among, batch_size=batch_size)
    rows: list[dict[str, Any]] = []
    with progress("steering", len(wanted)) as bar:
        for factor in wanted:
            drawn, short = zip(*(random.draw(rng) for _ in range(draws)), strict=True)
            ours = _steered(model, examples, among, silenced.heads, factor, batch_size)
            controls = [_steered(model, examples, among, h, factor, batch_size).right.mean() for h in drawn]
            if any(silenced.heads) and not any(own for heads in drawn for own in heads):
                controls = [np.nan] * draws
            rows.append(
                {
                    "factor": factor, "accuracy": ours.right.mean(), "control": np.mean(controls),
                    "control_sd": np.std(controls, ddof=1) if draws > 1 else np.nan, "short": max(map(sum, short)),
                    "p": _mcnemar(before, ours),
                    "surprisal": ours.surprisal.mean(),
                }
            )  # fmt: skip
            bar.advance()
    counts: dict[str, Any] = {
        "heads_per_example": sum(map(len, silenced.heads)) / len(silenced.heads), "examples": len(examples.input_ids),
        "contexts": len(probes.contexts), "nouns": len(probes.nouns), "draws": draws, "among": among,
        "denominator": denominator,
    }  # fmt: skip
    return pd.DataFrame(rows).assign(**counts)


def _steered(
    model: PreTrainedModel, examples: Examples, among: str, heads: Sequence[Any], factor: float, batch_size: int
) -> Choices:
    gates = None if factor == 1 or not any(heads) else gates_of(model, heads, factor)
    return choices(model, examples, among, gates, batch_size)


def _mcnemar(before: Choices, after: Choices) -> float:
    tests = require("statsmodels.stats.contingency_tables", "McNemar's test")
    table = [[int((a & b).sum()) for b in (after.right, ~after.right)] for a in (before.right, ~before.right)]
    if table[0][1] + table[1][0] == 0:
        return np.nan
    return float(tests.mcnemar(table, exact=True).pvalue)
