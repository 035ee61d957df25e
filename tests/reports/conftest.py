"""Result tables of a study, made by hand in a moment in the form of a long run's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import symground as sg
from symground.analysis.statistics.information_gain import gain_by_context
from symground.files import write_json

NOUNS = ("ball", "dog", "book", "cup", "shoe", "car")
Made = Callable[..., Path]


def results(
    folder: Path, nouns: Sequence[str] = NOUNS, models: Sequence[str] = ("gpt2-4l",), seeds: int = 2,
    steps: Sequence[int] = (0, 100, 200, 400), contexts: int = 3, layers: int = 3, heads: int = 2, shift: float = 0.0,
    noise: int = 0,
) -> Path:  # fmt: skip
    """Write all tables of a study. The gain of each noun passes 1 between the second checkpoint and the last."""
    rng = np.random.default_rng(noise)
    (folder / "data").mkdir(parents=True)
    (folder / "results").mkdir()
    write_json(folder / "data" / "statistics.json", {"tokens": 1000, "env_tokens": 250, "vocabulary": 99})
    pairs = [["picks up {}", "look at the"], ["holds {}", "where is the"], ["sees {}", "that's a"]][:contexts]
    config = {"nouns": list(nouns), "contexts": pairs, "corpus": ["generated"]}
    write_json(folder / "config.json", config)
    keys = [(model, seed, step) for model in models for seed in range(seeds) for step in steps]
    frames: dict[str, list[pd.DataFrame]] = {}

    def add(name: str, key: tuple[str, int, int], frame: pd.DataFrame) -> None:
        model, seed, step = key
        keyed = pd.DataFrame({"model": model, "seed": seed, "step": step}, index=frame.index)
        frames.setdefault(name, []).append(pd.concat([keyed, frame], axis=1))

    grid = [(c, u, v) for c in range(contexts) for u in nouns for v in nouns]
    examples, cells = len(nouns) * contexts, [(layer, head) for layer in range(layers) for head in range(heads)]
    for key in keys:
        _, _, step = key
        grown = step / max(*steps, 1) * 4 + shift
        of = [(u == v) * (grown + 0.05 * nouns.index(v)) for _, u, v in grid]
        surprisal = 6 - np.array(of) + rng.normal(0, 0.05, len(grid))
        scores = pd.DataFrame(grid, columns=["context", "env", "target"]).assign(surprisal=surprisal)
        add("surprisal", key, scores)
        of_contexts = gain_by_context(scores)
        add("contexts", key, of_contexts)
        gain = (64 * of_contexts.groupby("target")[["matched", "mismatched", "gain"]].mean()).round() / 64
        for name in ("matched", "mismatched", "gain"):
            gain[f"{name}_low"], gain[f"{name}_high"] = gain[name] - 0.1, gain[name] + 0.1
        add("gain", key, gain.rename_axis("target").reset_index())
        r2 = {"r2": 0.5, "r2_low": 0.3, "r2_high": 0.7, "slope": 0.4, "partial_r2": 0.1, "partial_r2_low": 0.0,
              "partial_r2_high": 0.3, "pmi_r2": 0.2, "nouns": len(nouns), "mean_gain": grown}  # fmt: skip
        add("r2", key, pd.DataFrame([r2 if grown > 0 else {**r2, "r2": np.nan}]))
        regions = [(layer, region, rng.random()) for layer in range(layers) for region in ("env", "event", "other")]
        add("saliency", key, pd.DataFrame(regions, columns=["layer", "region", "value"]).assign(examples=examples))
        of_heads = [(e, kind, d, 0, e % heads, 0.5) for e in range(examples) for kind in ("aggregate", "gather")
                    for d in ("row", "matrix")]  # fmt: skip
        columns = ["example", "kind", "denominator", "layer", "head", "share"]
        add("heads", key, pd.DataFrame(of_heads, columns=columns))
        shares = [(k, d, *cell, 0.4, 0.35, 0.6, 0.7, 0.6, examples) for k in ("aggregate", "gather")
                  for d in ("row", "matrix") for cell in cells]  # fmt: skip
        columns = ["kind", "denominator", "layer", "head", "share", "null", "null_95", "selected", "null_selected"]
        add("shares", key, pd.DataFrame(shares, columns=[*columns, "examples"]).assign(threshold=0.25))
        maps = []
        for context in range(min(2, contexts)):
            for noun in nouns[:3]:
                words = ["<CHI>", "picks:<ENV>", f"{noun}:<ENV>", "<CHI>", "look:<LAN>", "the:<LAN>"]
                for layer in range(layers):
                    saliency = np.tril(rng.random((6, 6))).astype(np.float16).ravel()
                    rows = rng.normal(size=heads * 6).astype(np.float16)
                    maps.append((context, noun, noun, 6 - grown, words, layer, saliency, rows))
        columns = ["context", "noun", "target", "surprisal", "tokens", "layer", "saliency", "rows"]
        add("maps", key, pd.DataFrame(maps, columns=columns))
        lens = [(lens, depth, noun, 6 - grown * depth / layers, 6.0, grown * depth / layers * part)
                for lens, part in (("tuned", 1.0), ("logit", 0.5))
                for depth in range(layers + 1) for noun in nouns]  # fmt: skip
        add("lens", key, pd.DataFrame(lens, columns=["lens", "depth", "target", "matched", "mismatched", "gain"]))
        if step != max(steps):
            continue
        cut = {
            "kind": "aggregate", "denominator": "row", "heads_per_example": 1.5, "mean_layer": 0.5, "original": 2.0,
            "control": 2.1, "control_sd": 0.1, "intervened": 5.0, "p": 1e-9, "p_random": 0.01, "d": 2.0, "d_low": 1.5,
            "d_high": 2.5, "gain_p": 1e-4, "selection": "example", "positions": "all", "mode": "zero",
            "match": "none", "span": 0, "examples": examples, "draws": 100, "short": 0,
        }  # fmt: skip
        for measure in ("mismatched", "gain", "context"):
            cut |= {f"{measure}_{which}": 3.0 for which in ("original", "control", "intervened")}
        add("interventions", key, pd.DataFrame([cut]))
        effects = [(*cell, i / 10, i / 9) for i, cell in enumerate(cells)]
        add(
            "sweep",
            key,
            pd.DataFrame(effects, columns=["layer", "head", "effect", "first_order"]).assign(examples=examples),
        )
        told = [(name, 0.9, 0.8, 0.95, 0.1, 0.2, 0.05, 7, examples, contexts, len(nouns), 2.0)
                for name in ("flow", "entropy")]  # fmt: skip
        columns = ["detector", "auroc", "auroc_low", "auroc_high", "brier", "brier_base", "ece", "wrong", "examples"]
        add("monitor", key, pd.DataFrame(told, columns=[*columns, "contexts", "nouns", "heads"]))
        bins = [(i, i / 10, i / 11, 5, name) for name in ("flow", "entropy") for i in range(10)]
        add("calibration", key, pd.DataFrame(bins, columns=["bin", "predicted", "observed", "count", "detector"]))
        steered = [(f, min(1, f / 2), 0.5, 0.01, 0.03, 2.0, 1.5, examples, 20, 0) for f in (0.0, 1.0, 2.0)]
        columns = ["factor", "accuracy", "control", "control_sd", "p", "surprisal", "heads_per_example", "examples"]
        add("steering", key, pd.DataFrame(steered, columns=[*columns, "draws", "short"]))
    for name, parts in frames.items():
        pd.concat(parts, ignore_index=True).to_parquet(folder / "results" / f"{name}.parquet")
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Makes a study's results in a folder of the given name."""
    return lambda name="study", **more: results(tmp_path / name, **more)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study with the default tables, rendered once for the tests that only read it."""
    return sg.report(results(tmp_path_factory.mktemp("rendered") / "study"))


#: Columns that identify a row; all others are values.
KEYS = (
    "model", "seed", "step", "context", "env", "target", "layer", "region", "example", "kind", "denominator", "head",
    "noun", "tokens", "saliency", "rows", "lens", "depth", "detector", "factor", "bin", "selection", "positions",
    "mode", "match", "span",
)  # fmt: skip
_COUNTS = ("examples", "contexts", "nouns", "draws", "short", "wrong", "count")


def distinct(folder: Path) -> Path:
    """A study of two models, two seeds and three checkpoints in which no two values are equal.

    An interval contains its value, p is at least 1e-6, and counts are whole numbers.
    """
    study = results(folder, models=("gpt2-4l", "mamba2-4l"), steps=(100, 200, 400), contexts=2)
    rng = np.random.default_rng(5)
    for path in sorted((study / "results").glob("*.parquet")):
        table = pd.read_parquet(path)
        if path.stem in ("surprisal", "contexts", "maps", "heads"):
            continue  # these have noise already, or are sets of heads
        if path.stem == "interventions":
            other = table.assign(kind="gather", denominator="matrix", span=1, selection="held-out", mode="mean")
            table = pd.concat([table, table.assign(step=200), other], ignore_index=True)
        values = [name for name in table if name not in KEYS and name != "threshold"]
        for name in values:
            drawn = rng.uniform(0.05, 0.95, len(table))
            if name in _COUNTS:
                drawn = 7 * rng.permutation(len(table)) + (3 if name in ("short", "wrong", "count") else 2000)
            elif name in ("p", "gain_p"):
                drawn = rng.permutation(np.logspace(-5, -0.4, len(table)))
            elif name in ("matched", "mismatched", "gain", "control", "original", "intervened", "slope", "d"):
                drawn = drawn * 9 + (1 if name != "slope" else -5)
            table[name] = drawn
        if path.stem == "gain":  # with a trend, so that tests have an effect to find
            table["gain"] = table["step"] / 100 + rng.normal(0, 0.4, len(table))
            # Sums of these numbers are exact. BCa counts resamples with the sample's mean, so rounding would change it.
            for name in ("matched", "mismatched", "gain"):
                table[name] = (64 * table[name]).round() / 64
        for name in values:  # each end on its side of the value
            for end, sign in (("_low", -1), ("_high", 1)):
                if name.endswith(end) and name.removesuffix(end) in table:
                    table[name] = table[name.removesuffix(end)] + sign * rng.uniform(0.1, 0.9, len(table))
        if "examples" in table:  # all rows of a run's checkpoint have the same number
            table["examples"] = table.groupby(["model", "seed", "step"])["examples"].transform("first")
        table.to_parquet(path)
    return study


@pytest.fixture(scope="session")
def distinct_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distinct(tmp_path_factory.mktemp("distinct") / "study")
