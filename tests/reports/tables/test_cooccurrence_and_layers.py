"""The numbers of the tables on co-occurrence and layers, each against one recomputed from the results."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from tests.reports.tables.recomputed import MODELS, bca, means, of
from tests.reports.tables.shown import compare, two


def test_r2(sheets: Any, table: Any) -> None:
    r2, gains = table("r2"), table("gain")
    peaks = []
    for model in MODELS:
        steps = [s for s in (100, 200, 400) if bca(means(of(gains, model=model, step=s), "target", "gain"))[0] > 0]
        of_step = [of(r2, model=model, step=step) for step in steps]
        values, slopes = ([part[name].mean() for part in of_step] for name in ("r2", "slope"))
        top = max(range(len(steps)), key=lambda i: values[i])
        nouns = max(of(r2, model=model)["nouns"][of(r2, model=model)["step"].isin(steps)])
        peaks.append({
            "model": model, "step of the largest": steps[top], "largest R²": two(values[top]),
            "slope there": two(slopes[top]),
            "last step": steps[-1], "last R²": two(values[-1]), "last slope": two(slopes[-1]),
            "fall": two(values[top] - values[-1]), "nouns": nouns, "seeds": 2,
        })  # fmt: skip
    compare(sheets["r2-peak"], peaks)
    called = {"r2": "R²", "r2_low": "R² low", "r2_high": "R² high", "slope": "slope", "pmi_r2": "PMI R²",
              "partial_r2": "partial R²"}  # fmt: skip
    compare(sheets["r2"], [
        {"model": row["model"], "seed": row["seed"], "step": row["step"],
         **{name: two(row[key]) for key, name in called.items()}, "nouns": row["nouns"],
         "mean gain": two(row["mean_gain"])}
        for row in r2.to_dict("records")
    ])  # fmt: skip


def test_layers(sheets: Any, table: Any) -> None:
    compare(sheets["saliency"], [
        {**{name: row[name] for name in ("model", "seed", "step", "layer", "region")}, "value": two(row["value"]),
         "examples": row["examples"]}
        for row in table("saliency").to_dict("records")
    ])  # fmt: skip
    lens, rows = table("lens"), []
    for model, name, step, depth in itertools.product(MODELS, ("tuned", "logit"), (100, 200, 400), range(4)):
        part = of(lens, model=model, lens=name, step=step, depth=depth)
        by_noun = means(part, "target", "gain")
        half = 1.96 * by_noun.std(ddof=1) / np.sqrt(len(by_noun))
        rows.append({
            "model": model, "lens": name, "step": step, "depth": depth,
            **{column: two(means(part, "target", column).mean()) for column in ("matched", "mismatched", "gain")},
            "low": two(by_noun.mean() - half), "high": two(by_noun.mean() + half), "nouns": 6, "seeds": 2,
        })  # fmt: skip
    compare(sheets["lens"], rows)
