"""Every number of every table of the page, against one worked out here from results no two of which are equal."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from symground.analysis.results import read_table
from symground.data.words import cdi_categories
from symground.reports.sections import SECTIONS, behaviour, beside
from symground.reports.sections.parts import Section, StudyResults, TablePart

Row = dict[str, Any]
Values = NDArray[np.float64]
MODELS, LAST, RUNS = ("gpt2-4l", "mamba2-4l"), 400, [("gpt2-4l", 0), ("gpt2-4l", 1), ("mamba2-4l", 0), ("mamba2-4l", 1)]
AGES = {"ball": 12.0, "dog": 14.0, "book": 19.0, "cup": 13.0, "shoe": 17.0, "car": 15.0}


class Reader(HTMLParser):
    """The rows of a table of the page, column → what stands in the cell."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.lines: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self.lines[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.lines and self.lines[-1] and data.strip():
            self.lines[-1][-1] += data.strip()

    @property
    def rows(self) -> list[dict[str, str]]:
        return [dict(zip(self.lines[0], line, strict=True)) for line in self.lines[1:]]


@pytest.fixture(scope="module")
def study(distinct_study: Path) -> StudyResults:
    return StudyResults.read(distinct_study)


@pytest.fixture(scope="module")
def table(distinct_study: Path) -> Callable[[str], pd.DataFrame]:
    """The results as they lie in their files."""
    return lambda name: read_table(distinct_study, name)


class Sheets:
    """The tables of the page by their names; a section is made when one of its tables is asked for."""

    def __init__(self, study: StudyResults) -> None:
        self._sections = [lambda: behaviour(study, AGES), *(partial(section, study) for section in SECTIONS)]
        self._found: dict[int, dict[str, list[dict[str, str]]]] = {}

    def __getitem__(self, name: str) -> list[dict[str, str]]:
        (number,) = (i for i, names in enumerate(NAMES) if name in names)
        if number not in self._found:
            section: Section = self._sections[number]()
            parts = [part for part in section.parts if isinstance(part, TablePart)]
            assert [part.name for part in parts] == list(NAMES[number])
            self._found[number] = {part.name: Reader(str(part.html)).rows for part in parts}
        return self._found[number][name]


#: Of each section, in its order.
NAMES = (
    ("final", "emergence", "acquisition", "nouns", "mixed", "training"), ("r2-peak", "r2"), ("saliency", "lens"),
    ("head-counts", "common-heads", "stability", "shares", "strongest", "flow-effect"),
    ("interventions", "study", "grounds"), ("monitor", "steering"),
)  # fmt: skip


@pytest.fixture(scope="module")
def sheets(study: StudyResults) -> Sheets:
    return Sheets(study)


# As people read numbers, written here once more.


def two(x: float) -> str:
    return "–" if np.isnan(x) else f"{x:.2f}".replace("-0.00", "0.00")


def three(x: float) -> str:
    return f"{x:.3f}"


def whole(x: float) -> str:
    return "never" if np.isinf(x) else f"{round(x):,}" if x >= 100 else f"{x:.2f}"


def probability(p: float) -> str:
    return "–" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def ends(low: float, high: float) -> str:
    return f"[{low:.2f}, {high:.2f}]".replace("-0.00", "0.00")


def starred(p: float) -> str:
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else ""


def holm(p: Sequence[float]) -> list[float]:
    """Sorted and multiplied with how many are left, none below the one before."""
    found, before = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        before = found[i] = min(1.0, max(before, p[i] * (len(p) - rank)))
    return found


def bca(values: Values) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few values scipy doubts the interval
        found = stats.bootstrap((values,), np.mean, n_resamples=2000, rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)


def of(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return frame


def means(frame: pd.DataFrame, unit: str, column: str) -> Values:
    """Of each noun, or of each seed."""
    return np.array([of(frame, **{unit: value})[column].to_numpy().mean() for value in sorted(set(frame[unit]))])


def compare(shown: Sequence[dict[str, str]], expected: Sequence[Row]) -> None:
    assert [list(row) for row in shown] == [list(row) for row in expected]
    assert shown == [{name: str(value) for name, value in row.items()} for row in expected]


def told_of(gains: pd.DataFrame, model: str) -> dict[int, Row]:
    """Of each checkpoint of a model: the paired t-test over nouns, and corrected."""
    steps = sorted(set(of(gains, model=model)["step"]))
    by_noun = [means(of(gains, model=model, step=step), "target", "gain") for step in steps]
    # t of the differences of the pairs, by its formula.
    t = [x.mean() / (x.std(ddof=1) / np.sqrt(len(x))) for x in by_noun]
    p = [float(2 * stats.t.sf(abs(value), len(x) - 1)) for value, x in zip(t, by_noun, strict=True)]
    return {
        step: {"p": raw, "holm": corrected, "d": x.mean() / x.std(ddof=1), "gains": x}
        for step, raw, corrected, x in zip(steps, p, holm(p), by_noun, strict=True)
    }


def over_seeds(values: Values) -> tuple[float, float]:
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def test_the_last_checkpoint_and_every_other(sheets: Any, table: Any) -> None:
    gains = table("gain")
    final, training = [], []
    for model in MODELS:
        for step, found in told_of(gains, model).items():
            part = of(gains, model=model, step=step)
            row = {"model": model, "step": step}
            measured = {name: means(part, "target", name) for name in ("matched", "mismatched", "gain")}
            with_ends = {name: f"{two(x.mean())} {ends(*bca(x))}" for name, x in measured.items()}
            corrected = probability(found["holm"])
            training.append({**row, **with_ends, "p": corrected, "nouns": 6, "seeds": 2})
            if step == LAST:
                flips = [np.mean(found["gains"] * signs) for signs in itertools.product((1, -1), repeat=6)]
                permuted = np.mean(np.abs(flips) >= abs(found["gains"].mean()) - 1e-12)
                final.append({
                    **row, **{name: two(x.mean()) for name, x in measured.items()},
                    "over nouns": ends(*bca(measured["gain"])),
                    "over seeds": ends(*over_seeds(means(part, "seed", "gain"))), "p": corrected,
                    "permutation p": probability(permuted), "d": two(found["d"]), "nouns": 6, "seeds": 2,
                })  # fmt: skip
    compare(sheets["final"], final)
    compare(sheets["training"], training)


def passes(curve: Values, steps: Values) -> float:
    """Walked along from the end."""
    found = np.inf
    for i in range(len(curve) - 1, -1, -1):
        if curve[i] <= 1:
            return (
                found
                if i == len(curve) - 1
                else steps[i] + (1 - curve[i]) / (curve[i + 1] - curve[i]) * (steps[i + 1] - steps[i])
            )
        found = steps[i]
    return found


def emergence_of(contexts: pd.DataFrame, model: str, whole: bool = False) -> tuple[dict[str, float], list[Row]]:
    """Noun → its step; the rows of the model and its categories."""
    part = of(contexts, model=model)
    steps = np.array(sorted(set(part["step"])), float)
    nouns = sorted(set(part["target"]))
    curves = {v: np.array([of(part, target=v, step=s)["gain"].mean() for s in steps]) for v in nouns}
    known = cdi_categories()
    groups = {("model", model): nouns}
    for category in () if whole else sorted({known[v] for v in nouns}):
        groups["category", category] = [v for v in nouns if known[v] == category]
    rows = []
    for (level, name), members in groups.items():
        own = np.array([curves[v] for v in members])
        low, high = np.nan, np.nan
        if len(own) > 1:
            rng = np.random.default_rng(0)
            drawn = sorted(passes(own[rows].mean(0), steps) for rows in rng.integers(0, len(own), (1000, len(own))))
            low, high = drawn[24], drawn[974]  # of 1,000, the 25th and the 975th
        step = passes(own.mean(0), steps)
        rows.append({"model": model, "of": level, "which": name, "step": step, "low": low, "high": high,
                     "nouns": len(members), "seeds": 2})  # fmt: skip
    rows.sort(key=lambda row: row["step"])
    return {v: passes(curves[v], steps) for v in nouns}, sorted(rows, key=lambda r: r["of"], reverse=True)


def test_emergence_and_ages(sheets: Any, table: Any) -> None:
    rows: list[Row] = []
    for model in MODELS:
        steps, found = emergence_of(table("contexts"), model)
        rows += [
            {
                **row,
                **{
                    name: "–" if np.isnan(row[name]) else whole(np.round(row[name])) for name in ("step", "low", "high")
                },
            }
            for row in found
        ]
        (shown,) = of(pd.DataFrame(sheets["acquisition"]), model=model).to_dict("records")
        nouns = list(AGES)
        of_steps, of_months = (stats.rankdata([values[v] for v in nouns]) for values in (steps, AGES))
        assert shown["correlation"] == two(np.corrcoef(of_steps, of_months)[0, 1])
        assert shown["p"] == probability(stats.spearmanr(of_steps, of_months).pvalue)
        assert shown["nouns"] == "6"
        assert shown["seeds"] == "2"
        assert shown["never emerged"] == "0"

        def correlations(index: Values, axis: int = -1, pairs: Any = (of_steps, of_months)) -> Values:
            rows = index.astype(int).reshape(-1, 6)
            of_rows = [[stats.rankdata(x[row]) for x in pairs] for row in rows]
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.array([np.corrcoef(*both)[0, 1] for both in of_rows]).reshape(index.shape[:-1])

        drawn = stats.bootstrap(
            (np.arange(6.0),), correlations, n_resamples=2000, method="percentile", vectorized=True, batch=200,
            rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        assert (shown["low"], shown["high"]) == (two(drawn.low), two(drawn.high))
    compare(sheets["emergence"], rows)


def test_nouns(sheets: Any, table: Any) -> None:
    gains, known, rows = table("gain"), cdi_categories(), []
    for model in MODELS:
        steps, _ = emergence_of(table("contexts"), model)
        of_model = []
        for noun in sorted(steps):
            part = of(gains, model=model, step=LAST, target=noun)
            numbers = {name: part[name].mean() for name in ("matched", "mismatched", "gain", "gain_low", "gain_high")}
            of_model.append(
                (numbers, {"model": model, "noun": noun, "category": known[noun]}, whole(round(steps[noun])))
            )
        for numbers, names, step in sorted(of_model, key=lambda row: -row[0]["gain"]):
            shown = {name.replace("gain_", ""): two(x) for name, x in numbers.items()}
            rows.append({**names, **shown, "seeds": 2, "emergence step": step})
    compare(sheets["nouns"], rows)


def test_mixed_effects(sheets: Any, table: Any) -> None:
    """Its numbers are tested by themselves: here, that each stands under its name, of the model and the last step."""
    from symground.analysis.statistics.mixed_models import mixed_effects

    rows = []
    for model in MODELS:
        found = mixed_effects(of(table("contexts"), model=model, step=LAST))
        floats = {"gain": "gain", "low": "low", "high": "high", "se": "se"}
        row = {"model": model, "step": LAST, **{name: two(found[key]) for name, key in floats.items()}}
        row |= {"p": probability(found["p"])}
        spread = {"sd noun": "sd_target", "sd context": "sd_context", "sd seed": "sd_seed", "sd rest": "sd_rest"}
        row |= {name: two(found[key]) for name, key in spread.items()}
        rows.append({**row, "nouns": 6, "contexts": 2, "seeds": 2, "converged": "yes" if found["converged"] else "no"})
    compare(sheets["mixed"], rows)


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
            "model": model, "peak_step": steps[top], "peak": two(values[top]), "slope": two(slopes[top]),
            "last_step": steps[-1], "last": two(values[-1]), "last_slope": two(slopes[-1]),
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


KINDS = [(kind, denominator) for kind in ("aggregate", "gather") for denominator in ("matrix", "row")]


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
        for row in sorted(part, key=lambda row: -row["selected"]):
            names |= {"layer": row["layer"], "head": row["head"], "found in": two(row["selected"])}
            common.append({**names, "mean share": two(row["share"]), "examples": row["examples"]})
        shown += [
            {
                "model": model, "seed": seed, "step": LAST, "kind": kind, "layer": row["layer"], "head": row["head"],
                "mean share": two(row["share"]), "of mismatched": two(row["null"]),
                "passed by 5 % of mismatched": two(row["null_95"]), "reaches 30 % in": two(row["selected"]),
                "of mismatched in": two(row["null_selected"]), "examples": row["examples"],
            }
            for row in sorted(part, key=lambda row: -row["share"]) if row["selected"] > 0.05
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
        named = [head for head in share if share[head] >= 0.30]
        others = [effect[head] for head in share if head not in named]
        explained.append({
            "model": model, "seed": seed, "step": LAST, "correlation": two(found.statistic),
            "p": probability(found.pvalue), "examples": own["examples"].iloc[0], "named heads": len(named),
            "heads": len(share), "share of the effect": two(sum(effect[h] for h in named) / sum(effect.values())),
            "largest effect of another": two(max(others, default=np.nan)),
        })  # fmt: skip
    compare(sheets["strongest"], strongest)
    compare(sheets["flow-effect"], explained)


def test_interventions(sheets: Any, table: Any) -> None:
    rows = table("interventions").to_dict("records")
    corrected: list[float] = [0.0] * len(rows)
    for run in RUNS:
        own = [i for i, row in enumerate(rows) if (row["model"], row["seed"]) == run]
        for i, p in zip(own, holm([rows[i]["p"] for i in own]), strict=True):
            corrected[i] = p
    assert {starred(p) for p in corrected} == {"", "*", "**", "***"}
    compare(sheets["interventions"], [
        {
            "model": row["model"], "seed": row["seed"], "step": row["step"], "kind": row["kind"],
            "share of": row["denominator"], "span": row["span"], "heads per example": two(row["heads_per_example"]),
            "mean layer": two(row["mean_layer"]), "intervened": two(row["intervened"]) + starred(p),
            "control": f"{row['control']:.2f} ± {row['control_sd']:.2f}", "original": two(row["original"]),
            "examples": row["examples"], "draws": row["draws"], "too few controls": row["short"],
        }
        for row, p in zip(rows, corrected, strict=True)
    ])  # fmt: skip

    def change(row: Row, prefix: str) -> str:
        before = row[f"{prefix}original"]
        return f"{row[f'{prefix}intervened'] - before:+.2f} ({row[f'{prefix}control'] - before:+.2f})"

    compare(sheets["grounds"], [
        {
            "model": row["model"], "seed": row["seed"], "step": row["step"], "kind": row["kind"],
            "share of": row["denominator"], "span": row["span"], "selection": row["selection"], "instead": row["mode"],
            "matched": change(row, ""), "mismatched": change(row, "mismatched_"), "gain": change(row, "gain_"),
            "rest of the context": change(row, "context_"), "p of gain": probability(row["gain_p"]),
            "d of matched": f"{row['d']:.2f} {ends(row['d_low'], row['d_high'])}", "examples": row["examples"],
        }
        for row in rows
    ])  # fmt: skip
    compare(sheets["study"], [
        {"step": "5000", "heads per example": "2.28", "mean layer": "7.38", "intervened": "6.51", "control": "6.39",
         "original": "6.38"},
        {"step": "10000", "heads per example": "5.09", "mean layer": "7.28", "intervened": "5.86", "control": "5.29",
         "original": "5.30"},
        {"step": "20000", "heads per example": "6.71", "mean layer": "7.52", "intervened": "5.62", "control": "4.76",
         "original": "4.77"},
    ])  # fmt: skip


def test_the_monitor_and_steering(sheets: Any, table: Any) -> None:
    compare(sheets["monitor"], [
        {
            "model": row["model"], "seed": row["seed"], "step": row["step"], "detector": row["detector"],
            "AUROC": f"{row['auroc']:.2f} {ends(row['auroc_low'], row['auroc_high'])}", "Brier": three(row["brier"]),
            "Brier of the share": three(row["brier_base"]), "calibration error": three(row["ece"]),
            "wrong": row["wrong"], "examples": row["examples"], "contexts": row["contexts"], "nouns": row["nouns"],
            "heads": two(row["heads"]),
        }
        for row in table("monitor").to_dict("records")
    ])  # fmt: skip
    compare(sheets["steering"], [
        {
            "model": row["model"], "seed": row["seed"], "step": row["step"], "factor": two(row["factor"]),
            "accuracy": three(row["accuracy"]), "random heads": f"{row['control']:.3f} ± {row['control_sd']:.3f}",
            "p": probability(row["p"]), "surprisal": two(row["surprisal"]),
            "heads per example": two(row["heads_per_example"]), "examples": row["examples"], "draws": row["draws"],
            "too few controls": row["short"],
        }
        for row in table("steering").to_dict("records")
    ])  # fmt: skip


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
