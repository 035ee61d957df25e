"""Two forms of one meaning: a noun in an English or a French scene, and the English noun in the talk after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.common.smollm2 import NAME, smollm2
from symground.analysis import gain_interval
from symground.analysis.results import read_table
from symground.analysis.run import MeasureSettings
from symground.recipes.pretrained import PretrainedSettings, probe

WORDS = Path(__file__).with_name("words.json")
_MEASURE = MeasureSettings(
    what=("surprisal", "saliency", "interventions", "monitor", "sweep", "lens"), spans=(0,), kinds=("aggregate",),
    denominators=("row",), selection=("held-out",), match=("none", "layer"), lens_fit=30,
)  # fmt: skip


def scenes(language: str, folder: Path) -> dict[str, Any]:
    """The figures of one language's scenes; the tables are in ``folder``, where an interrupted call goes on."""
    words = json.loads(WORDS.read_text(encoding="utf-8"))
    place = folder.parent / f"{folder.name}-words"  # the tables name these files, so they keep their place
    place.mkdir(parents=True, exist_ok=True)
    files = {name: place / name for name in ("nouns.txt", "contexts.json", "spoken.json")}
    in_scene = {english: french if language == "french" else english for english, french in words["nouns"].items()}
    files["nouns.txt"].write_text("\n".join(in_scene.values()), encoding="utf-8")
    files["contexts.json"].write_text(json.dumps(words[language]), encoding="utf-8")
    spoken = {noun: english for english, noun in in_scene.items()}
    files["spoken.json"].write_text(json.dumps(spoken), encoding="utf-8")
    settings = PretrainedSettings(
        nouns=str(files["nouns.txt"]), contexts=str(files["contexts.json"]), spoken=str(files["spoken.json"]),
        limit=None, measure=_MEASURE,
    )  # fmt: skip
    probe(str(smollm2()), folder, settings)
    return {"model": NAME, "language": language, "nouns": len(in_scene), "contexts": len(words[language]),
            **_figures(folder)}  # fmt: skip


def _figures(folder: Path) -> dict[str, Any]:
    table = {name: read_table(folder, name) for name in (
        "gain", "saliency", "shares", "interventions", "sweep", "lens", "monitor", "steering"
    )}  # fmt: skip
    gain, low, high = gain_interval(table["gain"])
    of_noun = table["saliency"].query("region == 'env'").groupby("layer")["value"].mean()
    middles = (of_noun.index.to_numpy() + 0.5) / len(of_noun)
    shares = table["shares"].query("kind == 'aggregate' and denominator == 'row'")
    over, over_null = shares["share"] >= _MEASURE.threshold, shares["null"] >= _MEASURE.threshold
    swept = table["sweep"].sort_values("effect", ascending=False)
    lens = table["lens"].groupby(["lens", "depth"])["gain"].mean()
    return {
        "gain": [gain, low, high],
        "matched": float(table["gain"]["matched"].mean()),
        "mismatched": float(table["gain"]["mismatched"].mean()),
        "nouns_with_gain": int((table["gain"]["gain"] > 0).sum()),
        "saliency": of_noun.tolist(),
        "saliency_centre": float((middles * of_noun).sum() / of_noun.sum()),
        "heads_over_threshold": int(over.sum()),
        "of_them_with_a_mismatched_scene": int((over & over_null).sum()),
        "interventions": table["interventions"].drop(columns=["model", "seed", "step"]).to_dict("records"),
        "sweep_largest": swept.head(8)[["layer", "head", "effect", "first_order"]].to_dict("records"),
        "sweep_correlation": float(np.corrcoef(swept["effect"], swept["first_order"])[0, 1]),
        "lens": {name: of_lens.tolist() for name, of_lens in lens.groupby(level="lens")},
        "monitor": records(
            table["monitor"], "detector", "auroc", "auroc_low", "auroc_high", "wrong", "examples", "note"
        ),
        "steering": records(table["steering"], "factor", "accuracy", "control", "control_sd", "p", "surprisal"),
    }


def records(table: pd.DataFrame, *columns: str) -> list[dict[str, Any]]:
    """The rows of a table as JSON objects; NaN is null."""
    rows = table[[*columns]].astype(object)
    found: list[dict[str, Any]] = rows.where(rows.notna(), None).to_dict("records")
    return found
