"""The numbers of the tables that compare studies, each against one recomputed from the results."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from symground.analysis.results import read_table
from symground.reports.sections import beside
from symground.reports.sections.parts import StudyResults, TablePart
from tests.reports.tables.recomputed import LAST, MODELS, bca, emergence_of, holm, means, of, over_seeds, told_of
from tests.reports.tables.shown import Reader, compare, probability, two, whole


def test_studies_beside_each_other(study: StudyResults, made: Callable[..., Path], table: Any) -> None:
    other = made("other", models=("mamba2-4l", "gpt2-4l"), steps=(0, 300), noise=4)
    section = beside([study, StudyResults.read(other)])
    found = {part.name: Reader(str(part.html)).rows for part in section.parts if isinstance(part, TablePart)}
    folders = {"study": (table("gain"), LAST, 2), "other": (read_table(other, "gain"), 300, 2)}
    last = []
    for name, (gains, step, seeds) in folders.items():
        for model in MODELS:
            part, of_step = of(gains, model=model, step=step), told_of(gains, model)[step]
            by_noun = means(part, "target", "gain")
            low, high = bca(by_noun)
            seed_low, seed_high = over_seeds(means(part, "seed", "gain"))
            last.append({
                "study": name, "model": model, "step": step,
                **{column: two(part[column].mean()) for column in ("matched", "mismatched", "gain")},
                "gain low": two(low), "gain high": two(high), "gain seed low": two(seed_low),
                "gain seed high": two(seed_high), "p": probability(of_step["holm"]), "d": two(of_step["d"]), "nouns": 6,
                "seeds": seeds,
            })  # fmt: skip
    compare(found["beside-last"], last)
    differences = []
    for model in MODELS:
        ours, theirs = (
            means(of(gains, model=model, step=step), "target", "gain") for gains, step, _ in folders.values()
        )
        differences.append(ours - theirs)
    p = [stats.ttest_rel(x, np.zeros(6)).pvalue for x in differences]
    rows = []
    for model, x, corrected in zip(MODELS, differences, holm(p), strict=True):
        flips = np.array([abs(np.mean(x * signs)) for signs in itertools.product((1, -1), repeat=6)])
        permuted = np.mean(flips >= abs(x.mean()) - 1e-12)
        low, high = bca(x)
        rows.append({
            "studies": "study − other", "model": model, "difference": two(x.mean()), "low": two(low), "high": two(high),
            "p": probability(corrected),
            "permutation p": probability(permuted), "d": two(x.mean() / x.std(ddof=1)), "nouns": 6,
        })  # fmt: skip
    compare(found["beside-differences"], rows)
    wholes = []
    for name, contexts, seeds in (("study", table("contexts"), 2), ("other", read_table(other, "contexts"), 2)):
        for model in MODELS:
            row = emergence_of(contexts, model, whole=True)[1][0]
            shown = {column: whole(round(row[column])) for column in ("step", "low", "high")}
            wholes.append({"study": name, "model": model, **shown, "nouns": 6, "seeds": seeds})
    compare(found["beside-emergence"], wholes)
    silenced = found["beside-interventions"]
    assert [row["study"] for row in silenced] == ["study"] * 12 + ["other"] * 4
    expected = read_table(other, "interventions").to_dict("records")
    assert [row["original"] for row in silenced[12:]] == [two(row["original"]) for row in expected]
