"""The data of the page's explorer: single examples at each checkpoint, compact enough to be part of the page."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from symground.files import evenly
from symground.reports.figures import logarithmic_from
from symground.reports.sections.parts import StudyResults
from symground.reports.template import script_json

#: Largest size of the maps in a page, in bytes. If they are larger, fewer checkpoints are shown, evenly spread.
BUDGET = 5 * 2**20
_LONGEST = 64  # tokens; longer examples are not shown


def explorer(study: StudyResults) -> Markup | None:
    """The maps of each model's first seed as JSON for a script element; None if there are none.

    {spaced (whether the tokens have their own spaces), runs: [{model, seed, layers, heads, steps, linear_until (of its
    axis of steps; None if it is linear), examples: [{noun, context, target, tokens}], maps: {step: [{surprisal,
    saliency, scales, rows, row_scales}]}, curves: {noun: {step, matched, mismatched, the ends of their intervals}}}]}

    saliency has each layer's lower triangle as bytes, scaled by its largest number. rows has the heads' rows as signed
    bytes, scaled in the same way.
    """
    maps, gains = study.results["maps"], study.results["gain"]
    if maps.empty:
        return None
    runs = []
    models = sorted(maps["model"].unique())
    for model in models:
        of_model = maps[maps["model"] == model]
        of_model = of_model[of_model["seed"] == of_model["seed"].min()]
        of_model = of_model[of_model["tokens"].map(len) <= _LONGEST]
        if len(of_model):
            runs.append(_run(str(model), of_model, _of(gains, model), BUDGET // len(models)))
    return script_json({"spaced": bool(study.pretrained), "runs": runs}) if runs else None


def _of(gains: pd.DataFrame, model: str) -> pd.DataFrame:
    return gains[gains["model"] == model] if len(gains) else pd.DataFrame(columns=["target", "step"])


def _run(model: str, maps: pd.DataFrame, gains: pd.DataFrame, budget: int) -> dict[str, Any]:
    seed, keys = int(maps["seed"].iloc[0]), ["context", "noun"]
    first = maps[maps["step"] == maps["step"].min()].drop_duplicates(keys)
    examples = [
        {"noun": noun, "context": int(context), "target": target, "tokens": list(tokens)}
        for noun, context, target, tokens in zip(
            first["noun"], first["context"], first["target"], first["tokens"], strict=True
        )
    ]
    layers = sorted(maps["layer"].unique().tolist())
    of_example = {(e["context"], e["noun"]): i for i, e in enumerate(examples)}
    lengths = [len(e["tokens"]) for e in examples]
    of_layers = maps.drop_duplicates("layer").sort_values("layer")
    heads = [len(rows) // len(words) for rows, words in zip(of_layers["rows"], of_layers["tokens"], strict=True)]
    size = sum(t * (t + 1) // 2 * len(layers) + t * sum(heads) for t in lengths) * 4 // 3 or 1
    steps = sorted(maps["step"].unique().tolist())
    most = max(2, budget // size)
    if len(steps) > most:
        steps = evenly(steps, most)
    found: dict[str, list[dict[str, Any]]] = {}
    for step in steps:
        at_step = maps[maps["step"] == step].sort_values("layer", kind="stable")
        found[str(step)] = [{}] * len(examples)
        for key, frame in at_step.groupby(keys, sort=False):
            if key in of_example:
                found[str(step)][of_example[key]] = _packed(frame, lengths[of_example[key]])
    nouns = {e["noun"] for e in examples}
    return {
        "model": model, "seed": seed, "layers": layers, "heads": heads, "steps": steps, "examples": examples,
        "linear_until": logarithmic_from(maps["step"]), "maps": found,
        "curves": _curves(gains[gains["target"].isin(nouns)]),
    }  # fmt: skip


def _packed(frame: pd.DataFrame, length: int) -> dict[str, Any]:
    below = np.tril_indices(length)
    saliency = [np.asarray(x, np.float32).reshape(length, length)[below] for x in frame["saliency"]]
    rows = [np.asarray(x, np.float32) for x in frame["rows"]]
    scales, row_scales = ([float(np.abs(x).max()) for x in several] for several in (saliency, rows))
    return {
        "surprisal": round(float(frame["surprisal"].iloc[0]), 3),
        "saliency": _bytes([x / s * 255 if s else x for x, s in zip(saliency, scales, strict=True)], np.uint8),
        "scales": [float(f"{s:.3g}") for s in scales],
        "rows": _bytes([x / s * 127 if s else x for x, s in zip(rows, row_scales, strict=True)], np.int8),
        "row_scales": [float(f"{s:.3g}") for s in row_scales],
    }


def _bytes(parts: list[NDArray[np.float32]], dtype: type[np.generic]) -> str:
    return base64.b64encode(np.concatenate(parts).round().astype(dtype).tobytes()).decode()


def _curves(gains: pd.DataFrame) -> dict[str, dict[str, list[float | None]]]:
    """noun → its surprisals over training, mean over seeds, with the ends of their intervals over contexts."""
    columns = ["matched", "matched_low", "matched_high", "mismatched", "mismatched_low", "mismatched_high"]
    mean = gains.reindex(columns=["target", "step", *columns]).groupby(["target", "step"])[columns].mean().round(3)
    found = {}
    for noun, frame in mean.groupby(level="target"):
        numbers = frame.astype(object).where(frame.notna(), None)
        found[str(noun)] = {"step": frame.index.get_level_values("step").tolist()} | {
            name: numbers[name].tolist() for name in columns
        }
    return found
