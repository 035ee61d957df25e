"""Saliency maps of single examples: every layer's matrix, and every head's signed row at the prediction position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from symground.analysis.probing import Probes
from symground.analysis.tracing.tracer import trace


def saliency_maps(
    model: PreTrainedModel, probes: Probes, pieces: Callable[[Sequence[int]], list[str]], nouns: int = 8,
    contexts: int = 2,
) -> pd.DataFrame:  # fmt: skip
    """Saliency maps of the matched examples of the first nouns in the first contexts, as a table for storage.

    Args:
        model: attached, with mixers.
        probes: their matched examples are traced.
        pieces: gives the text of each token of ids.
        nouns: number of nouns.
        contexts: number of contexts.

    Returns:
        A DataFrame with a row per example and layer. Its columns:

        - context, noun, target (the noun's word), layer (from 0), surprisal (nats);
        - tokens: T of them, up to the (last) prediction position;
        - saliency: T·T numbers, |Σ_h S_h| by query, then by key, float16;
        - rows: H·T numbers, signed S_h[p, key] by head, float16; of a target of several tokens, the sum over them.
    """
    chosen = probes.take_contexts(range(len(probes.contexts))[:contexts]).matched()
    every = len(probes.nouns)
    kept = [i for i, noun in enumerate(chosen.noun) if noun in probes.nouns[:nouns]]
    traced = trace(model, chosen, rows=True).isel(example=kept)
    ids, lengths = chosen.input_ids.numpy(), chosen.lengths.numpy()
    rows: list[dict[str, Any]] = []
    for i, example in enumerate(kept):
        end = int(lengths[example])
        words = pieces(ids[example, :end].tolist())
        common = {
            "context": chosen.context[example], "noun": chosen.noun[example],
            "target": probes.spoken[example % every], "surprisal": float(traced.surprisal[i]), "tokens": words,
        }  # fmt: skip
        for j, layer in enumerate(traced.layer.values.tolist()):
            of_heads = traced.rows[i, j].values  # [H,T]
            of_heads = of_heads[np.isfinite(of_heads).all(-1)]
            rows.append(
                {
                    **common,
                    "layer": layer,
                    "saliency": traced.saliency[i, j, :end, :end].values.astype(np.float16).ravel(),
                    "rows": of_heads[:, :end].astype(np.float16).ravel(),
                }
            )
    return pd.DataFrame(rows)
