"""The study's causal table: silence the heads found in each example, and as many random others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import PreTrainedModel

from symground import ops
from symground.analysis.ablate import ablate
from symground.analysis.heads import HeadSet, find_heads
from symground.analysis.probes import Examples, Probes
from symground.analysis.trace import trace
from symground.models import mixers
from symground.models.readout import hidden_states, verified_readout
from symground.progress import progress


def intervene(
    model: PreTrainedModel,
    probes: Probes,
    kind: str | Sequence[str] = "aggregate",
    *,
    denominator: str | Sequence[str] = ("row", "matrix"),
    threshold: float = 0.30,
    draws: int = 100,
    seed: int = 0,
    batch_size: int = 1024,
) -> pd.DataFrame:
    """Silence each example's own heads and compare with random control heads.

    Args:
        model: attached, in evaluation.
        probes: their matched examples are used.
        kind: "aggregate", "gather", or several.
        denominator: "row", "matrix", or several; see :func:`symground.find_heads`.
        threshold: the smallest share of flow.
        draws: how often the controls are drawn: as many heads as the example's own, at random from all unselected
            heads of all layers.
        seed: of the controls.
        batch_size: examples per forward pass.

    Returns:
        A DataFrame, a row per kind and denominator: kind, denominator, heads_per_example, mean_layer (of the selected
        heads, layers from 0), original, control (mean over draws of the mean surprisal), control_sd (its standard
        deviation over draws), intervened (mean surprisals, nats), p (paired t-test over examples, intervened against
        original; NaN when nothing was selected), span, examples, draws, short (examples with fewer unselected heads
        than selected ones, where the control silences all of those).

    Raises:
        ValueError: fewer than one draw, or what trace, find_heads and ablate refuse.

    Source: arXiv 2510.13796, the intervention table.
    """
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")
    kinds = [kind] if isinstance(kind, str) else list(kind)
    denominators = [denominator] if isinstance(denominator, str) else list(denominator)
    traced = trace(model, probes, saliency=False)
    examples = probes.matched()
    everything = [(mixer.layer, head) for mixer in mixers(model) for head in range(mixer.heads)]
    original = surprisal(model, examples, None, batch_size)
    rows = []
    with progress("intervene", len(kinds) * len(denominators) * (draws + 1)) as bar:
        for k in kinds:
            for d in denominators:
                selected = find_heads(traced, k, threshold, d)
                intervened = surprisal(model, examples, selected, batch_size)
                bar.advance()
                rng = np.random.default_rng(seed)
                unselected = [[pair for pair in everything if pair not in own] for own in selected]
                controls = []
                for _ in range(draws):
                    random = [_draw(rng, rest, len(own)) for own, rest in zip(selected, unselected, strict=True)]
                    controls.append(surprisal(model, examples, random, batch_size).mean())
                    bar.advance()
                layers = [layer for own in selected for layer, _ in own]
                rows.append(
                    {
                        "kind": k,
                        "denominator": d,
                        "heads_per_example": len(layers) / len(selected),
                        "mean_layer": float(np.mean(layers)) if layers else np.nan,
                        "original": original.mean(),
                        "control": np.mean(controls),
                        "control_sd": np.std(controls, ddof=1) if draws > 1 else np.nan,
                        "intervened": intervened.mean(),
                        "p": stats.ttest_rel(intervened, original).pvalue if layers else np.nan,
                        "span": probes.span,
                        "examples": len(selected),
                        "draws": draws,
                        "short": sum(len(rest) < len(own) for own, rest in zip(selected, unselected, strict=True)),
                    }
                )
    return pd.DataFrame(rows)


def surprisal(
    model: PreTrainedModel, examples: Examples, heads: Sequence[HeadSet] | None, batch_size: int = 1024
) -> NDArray[np.float64]:
    """Surprisal [N] in nats of each example's target, with each example's own ``heads`` silenced."""
    head = verified_readout(model)
    device = head.weight.device
    values = []
    with torch.inference_mode():
        for start in range(0, len(examples.input_ids), batch_size):
            part = slice(start, start + batch_size)
            ids, p = examples.input_ids[part].to(device), examples.prediction[part].to(device)
            with ablate(model, () if heads is None else heads[part]):
                hidden = hidden_states(model, ids)[torch.arange(len(ids), device=device), p]
            target = examples.targets[part].to(device)[:, None]
            values.append(ops.candidate_surprisal(hidden, head.weight, target, head.bias)[:, 0])
    return torch.cat(values).double().cpu().numpy()


def _draw(rng: np.random.Generator, rest: list[tuple[int, int]], count: int) -> HeadSet:
    picked = rng.choice(len(rest), size=min(count, len(rest)), replace=False)
    return frozenset(rest[i] for i in picked)
