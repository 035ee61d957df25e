"""Time, memory and file size of the report of a study as large as a paper's. The study's tables are made up.

python -m benchmarks report [--seeds 5 --checkpoints 40 --layers 12 --heads 12 --nouns 100 --contexts 10]
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common.options import integer
from symground.data import STUDY_NOUNS
from symground.files import write_json
from symground.reports import report


def main() -> None:
    """Make the tables, write the report, and print its time, memory and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("seeds", 5), ("checkpoints", 40), ("layers", 12), ("heads", 12), ("nouns", 100)):
        parser.add_argument(f"--{name}", type=integer(), default=default)
    parser.add_argument("--contexts", type=integer(), default=10)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = made(Path(folder) / "study", asked)
        since = time.perf_counter()
        page = report(study)
        seconds = time.perf_counter() - since
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(vars(asked) | {
            "seconds": round(seconds, 1), "MB": round(page.stat().st_size / 1e6, 2), "peak MiB": round(peak),
        }))  # fmt: skip


def made(study: Path, asked: argparse.Namespace) -> Path:
    """Make a study's folder with the tables of one model's runs; returns it."""
    rng = np.random.default_rng(0)
    nouns, contexts = list(STUDY_NOUNS[: asked.nouns]), range(asked.contexts)
    (study / "data").mkdir(parents=True)
    (study / "results").mkdir()
    write_json(study / "data" / "statistics.json", {"tokens": 10**7, "env_tokens": 10**6, "vocabulary": 12_714})
    texts = [[f"scene {c} of {{}}", "look at the"] for c in contexts]
    write_json(study / "config.json", {"nouns": nouns, "contexts": texts, "corpus": ["made up"]})
    keys = list(itertools.product(["gpt2-12l"], range(asked.seeds), range(0, 500 * asked.checkpoints, 500)))
    cells = np.array(list(itertools.product(range(asked.layers), range(asked.heads))))
    kinds = list(itertools.product(("aggregate", "gather"), ("row", "matrix")))

    def save(name: str, of: dict[str, object], rows: int, steps: list[tuple[str, int, int]] = keys) -> None:
        frame = {"model": np.repeat([k[0] for k in steps], rows), "seed": np.repeat([k[1] for k in steps], rows),
                 "step": np.repeat([k[2] for k in steps], rows)}  # fmt: skip
        pd.DataFrame({**frame, **of}).to_parquet(study / "results" / f"{name}.parquet", index=False)

    count = len(nouns) * len(contexts)
    step = np.array([k[2] for k in keys]) / keys[-1][2]
    grown = np.repeat(4 * step, count) + rng.normal(0, 0.3, count * len(keys))
    save("contexts", {
        "context": np.tile(np.repeat(contexts, len(nouns)), len(keys)),
        "target": np.tile(nouns, len(contexts) * len(keys)), "matched": 8 - grown, "mismatched": 8.0, "gain": grown,
    }, count)  # fmt: skip
    gain = grown.reshape(len(keys), len(contexts), len(nouns)).mean(1).ravel()
    numbers = {"matched": 8 - gain, "mismatched": np.full(len(gain), 8.0), "gain": gain}
    ends = {f"{n}_{e}": v + d for n, v in numbers.items() for e, d in (("low", -0.1), ("high", 0.1))}
    save("gain", {"target": np.tile(nouns, len(keys)), **numbers, **ends}, len(nouns))
    names = ("r2", "r2_low", "r2_high", "slope", "pmi_r2", "partial_r2", "partial_r2_low", "partial_r2_high")
    save("r2", {**{n: rng.random(len(keys)) for n in names}, "nouns": len(nouns), "mean_gain": 4 * step}, 1)
    regions = list(itertools.product(range(asked.layers), ("env", "event", "other")))
    save("saliency", {
        "layer": np.tile([r[0] for r in regions], len(keys)), "region": np.tile([r[1] for r in regions], len(keys)),
        "value": rng.random(len(regions) * len(keys)),
    }, len(regions))  # fmt: skip
    rows = len(cells) * len(kinds)
    shares = rng.random((6, rows * len(keys)))
    save("shares", {
        "kind": np.tile(np.repeat([k[0] for k in kinds], len(cells)), len(keys)),
        "denominator": np.tile(np.repeat([k[1] for k in kinds], len(cells)), len(keys)),
        "layer": np.tile(np.tile(cells[:, 0], len(kinds)), len(keys)),
        "head": np.tile(np.tile(cells[:, 1], len(kinds)), len(keys)),
        **dict(zip(("share", "null", "null_95", "selected", "null_selected"), shares, strict=False)),
        "examples": count,
    }, rows)  # fmt: skip
    each = 8 * len(kinds)  # heads of an example
    found = count * each
    save("heads", {
        "example": np.tile(np.repeat(np.arange(count), each), len(keys)),
        "kind": np.tile(np.tile([k[0] for k in kinds], 8), count * len(keys)),
        "denominator": np.tile(np.tile([k[1] for k in kinds], 8), count * len(keys)),
        "layer": rng.integers(asked.layers, size=found * len(keys)),
        "head": rng.integers(asked.heads, size=found * len(keys)), "share": 0.5,
    }, found)  # fmt: skip
    length = 12
    shown = list(itertools.product(range(2), nouns[:8], range(asked.layers)))
    words = ["<CHI>", "takes:<ENV>", "it:<ENV>", *["and:<LAN>"] * (length - 3)]
    many = len(shown) * len(keys)
    saliency = [np.tril(rng.random((length, length))).astype(np.float16).ravel() for _ in range(50)]
    signed = [rng.normal(size=asked.heads * length).astype(np.float16) for _ in range(50)]
    save("maps", {
        "context": np.tile([s[0] for s in shown], len(keys)), "noun": np.tile([s[1] for s in shown], len(keys)),
        "target": np.tile([s[1] for s in shown], len(keys)), "surprisal": 4.0, "tokens": [words] * many,
        "layer": np.tile([s[2] for s in shown], len(keys)), "saliency": [saliency[i % 50] for i in range(many)],
        "rows": [signed[i % 50] for i in range(many)],
    }, len(shown))  # fmt: skip
    some = [k for k in keys if k[2] in {keys[i * (asked.checkpoints - 1) // 4][2] for i in range(5)}]
    depths = list(itertools.product(("tuned", "logit"), range(asked.layers + 1), nouns))
    save("lens", {
        "lens": [d[0] for d in depths] * len(some), "depth": [d[1] for d in depths] * len(some),
        "target": [d[2] for d in depths] * len(some),
        **{n: rng.random(len(depths) * len(some)) for n in ("matched", "mismatched", "gain")},
    }, len(depths), some)  # fmt: skip
    last = [k for k in keys if k[2] == keys[-1][2]]
    save("sweep", {
        "layer": np.tile(cells[:, 0], len(last)), "head": np.tile(cells[:, 1], len(last)),
        "effect": rng.random(len(cells) * len(last)), "first_order": rng.random(len(cells) * len(last)),
    }, len(cells), last)  # fmt: skip
    return study


if __name__ == "__main__":
    main()
