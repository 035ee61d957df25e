"""The numbers of the tables on heads, each against one recomputed from the results."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from scipy import stats

from tests.reports.tables.recomputed import KINDS, LAST, RUNS, of
from tests.reports.tables.shown import apart, compare, probability, two


def test_counts_of_heads(sheets: Any, table: Any) -> None:
    shares, rows = table("shares"), []
    for (model, seed), step, (kind, denominator) in itertools.product(RUNS, (100, 200, 400), KINDS):
        part = of(shares, model=model, seed=seed, step=step, kind=kind, denominator=denominator)
        count = part["selected"].sum()
        layer = sum(x * layer for x, layer in zip(part["selected"], part["layer"], strict=True)) / count
        rows.append({
            "model": model, "seed": seed, "step": step, "kind": kind, "denominator": denominator,
            "heads per example": two(count), "mean layer": two(layer), "examples": part["examples"].iloc[0],
        })  # fmt: skip
    compare(sheets["head-counts"], rows)


def test_common_heads_and_their_null(sheets: Any, table: Any) -> None:
    shares = of(table("shares"), step=LAST, denominator="row")
    common, shown = [], []
    for (model, seed), kind in itertools.product(RUNS, ("aggregate", "gather")):
        part = of(shares, model=model, seed=seed, kind=kind).to_dict("records")
        names = {"model": model, "seed": seed, "kind": kind}
        found = sorted(part, key=lambda row: -row["selected"])
        for row, share in zip(found, apart([row["selected"] for row in found]), strict=True):
            names |= {"layer": row["layer"], "head": row["head"], "found in": share}
            common.append({**names, "mean share": two(row["share"]), "examples": row["examples"]})
        largest = [row for row in sorted(part, key=lambda row: -row["share"]) if row["selected"] > 0.05]
        shown += [
            {
                "model": model, "seed": seed, "step": LAST, "kind": kind, "layer": row["layer"], "head": row["head"],
                "mean share": share, "of mismatched": two(row["null"]),
                "passed by 5 % of mismatched": two(row["null_95"]), "reaches 25 % in": two(row["selected"]),
                "of mismatched in": two(row["null_selected"]), "examples": row["examples"],
            }
            for row, share in zip(largest, apart([row["share"] for row in largest]), strict=True)
        ]  # fmt: skip
    compare(sheets["common-heads"], common)
    compare(sheets["shares"], shown)


def test_heads_alone(sheets: Any, table: Any) -> None:
    swept, shares = table("sweep"), of(table("shares"), step=LAST, kind="aggregate", denominator="row")
    strongest, explained = [], []
    for model, seed in RUNS:
        part = of(swept, model=model, seed=seed, step=LAST)
        fit = np.corrcoef(part["effect"], part["first_order"])[0, 1]
        strongest += [
            {
                **{name: row[name] for name in ("model", "seed", "step", "layer", "head")},
                "effect, nats": two(row["effect"]), "first-order estimate": two(row["first_order"]),
                "examples": row["examples"], "correlation over all heads": two(fit),
            }
            for row in sorted(part.to_dict("records"), key=lambda row: -row["effect"])[:8]
        ]  # fmt: skip
        own = of(shares, model=model, seed=seed)
        share = {(x["layer"], x["head"]): x["share"] for x in own.to_dict("records")}
        effect = {(x["layer"], x["head"]): x["effect"] for x in part.to_dict("records")}
        found = stats.spearmanr([share[head] for head in share], [effect[head] for head in share])
        named = [head for head in share if share[head] >= 0.25]
        others = [effect[head] for head in share if head not in named]
        explained.append({
            "model": model, "seed": seed, "step": LAST, "correlation": two(found.statistic),
            "p": probability(found.pvalue), "examples": own["examples"].iloc[0], "named heads": len(named),
            "heads": len(share), "share of the effect": two(sum(effect[h] for h in named) / sum(effect.values())),
            "largest effect of another": two(max(others, default=np.nan)),
        })  # fmt: skip
    compare(sheets["strongest"], strongest)
    compare(sheets["flow-effect"], explained)
