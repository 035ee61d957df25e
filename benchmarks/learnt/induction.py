"""Induction heads by three measures: what a head attends, the share of its flow, and what silencing it does.

A text is BOS, random tokens, and some of the same tokens again; the token that followed last time is the target. A head
of induction attends that token's first occurrence from the last position (Olsson et al. 2022, "In-context learning and
induction heads").
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy import stats

import symground as sg
from benchmarks.common.smollm2 import NAME, smollm2
from symground.analysis import head_shares

#: Texts, different tokens in each, how many of them are repeated, heads that are compared, random draws.
TEXTS, TOKENS, REPEATED, TOP, DRAWS = 32, 32, 8, 8, 100


def induction() -> dict[str, Any]:
    """How far the three measures agree over all heads, and on the strongest eight."""
    model = sg.load(smollm2())
    ids, targets, induced = texts(model.config)
    groups = {"env": induced}
    traced = sg.trace(model, ids, targets, groups=groups, saliency=False)
    seen = sg.attention(model, ids, groups=groups)
    measures: dict[str, xr.DataArray] = {
        "attention": seen.mass.sel(query_group="prediction", key_group="env").mean("example"),
        "flow": head_shares(traced, "aggregate", "row").mean("example"),
        "effect": sg.sweep_heads(model, ids, targets),
    }
    table = pd.DataFrame({name: x.values.ravel() for name, x in measures.items()})
    heads = measures["effect"].sizes["head"]
    first = {name: [divmod(int(i), heads) for i in table[name].nlargest(TOP).index] for name in measures}
    pairs = {
        f"{a} and {b}": {
            "rank_correlation": float(stats.spearmanr(table[a], table[b]).statistic),
            "both_in_top": len(set(first[a]) & set(first[b])),
        }
        for a, b in combinations(measures, 2)
    }
    over = [tuple(map(int, at)) for at in np.argwhere(measures["flow"].values >= 0.30)]
    return {
        "model": NAME, "texts": TEXTS, "tokens": TOKENS, "repeated": REPEATED,
        "surprisal": float(traced.surprisal.mean()),
        "pairs": pairs, "heads_over_threshold": len(over),
        "top": {name: [_head(table, at, heads) for at in found] for name, found in first.items()},
        "silenced": {name: surprisal_without(model, ids, targets, found) for name, found in first.items()},
        "random": _random(model, ids, targets, {at for found in first.values() for at in found}),
    }  # fmt: skip


def texts(config: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids [N,T], the targets [N], and the mask of the positions that an induction head attends [N,T]."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [torch.randperm(config.vocab_size - 1000, generator=generator)[:TOKENS] + 1000 for _ in range(TEXTS)]
    )
    ats = torch.randint(REPEATED, TOKENS - 1, (TEXTS,), generator=generator)  # the index of the target among the tokens
    length = 1 + TOKENS + REPEATED
    ids = torch.full((TEXTS, length), int(config.bos_token_id))
    induced = torch.zeros(TEXTS, length, dtype=torch.bool)
    for i, (row, at) in enumerate(zip(drawn, ats.tolist(), strict=True)):
        ids[i, 1 : TOKENS + 1] = row
        ids[i, TOKENS + 1 :] = row[at - REPEATED : at]
        induced[i, 1 + at] = True
    return ids, drawn[torch.arange(TEXTS), ats], induced


def _head(table: pd.DataFrame, at: tuple[int, int], heads: int) -> dict[str, Any]:
    row = table.iloc[at[0] * heads + at[1]]
    return {"layer": at[0], "head": at[1], **{str(name): float(x) for name, x in row.items()}}


def surprisal_without(model: Any, ids: torch.Tensor, targets: torch.Tensor, heads: list[tuple[int, int]]) -> float:
    """Mean surprisal of the targets with heads silenced, nats."""
    with torch.no_grad(), sg.ablate(model, heads):
        logp = model(ids, logits_to_keep=1, use_cache=False).logits[:, 0].log_softmax(-1)
    return float(-logp.gather(1, targets[:, None]).mean())


def _random(model: Any, ids: torch.Tensor, targets: torch.Tensor, taken: set[tuple[int, int]]) -> list[float]:
    """Mean and standard deviation of the surprisal with eight other heads silenced."""
    config, rng = model.config, np.random.default_rng(0)
    every = [(i, j) for i in range(config.num_hidden_layers) for j in range(config.num_attention_heads)]
    left = [at for at in every if at not in taken]
    found = [
        surprisal_without(model, ids, targets, [left[i] for i in rng.choice(len(left), TOP, replace=False)])
        for _ in range(DRAWS)
    ]
    return [float(np.mean(found)), float(np.std(found, ddof=1))]
