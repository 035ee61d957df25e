"""The numbers in sentences: the page's lead and summary, captions, the terminal, paper.md and dials."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import symground
import symground as sg
from symground.analysis.results import read_table
from symground.files import read_json, write_json
from symground.recipes import heads as recipe_of_heads
from symground.recipes.study import summarise
from symground.reports.comparisons.dials import markdown as dials_markdown
from symground.reports.comparisons.dials import silenced_heads, silenced_markdown
from symground.reports.comparisons.dials import summary as dials_summary
from symground.reports.comparisons.paper import markdown, tables
from symground.reports.pages.findings import findings_of
from symground.reports.pages.study import _lead, summary
from symground.reports.sections import SECTIONS, behaviour
from symground.reports.sections.captions import FIGURES, TABLES
from symground.reports.sections.heads import threshold_of, with_threshold
from symground.reports.sections.parts import Section, StudyResults, TablePart

sys.path.insert(0, str(Path(symground.__file__).resolve().parent.parent))

from tools import page_tables

Made = Callable[..., Path]
MODELS, RUNS = ("gpt2-4l", "mamba2-4l"), [("gpt2-4l", 0), ("gpt2-4l", 1), ("mamba2-4l", 0), ("mamba2-4l", 1)]


def of(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    return frame


def mean_over_nouns(frame: pd.DataFrame, column: str) -> np.ndarray:
    return np.array([of(frame, target=noun)[column].to_numpy().mean() for noun in sorted(set(frame["target"]))])


def with_ends(values: np.ndarray) -> str:
    """The mean and its BCa interval, as text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns about the interval of few values
        found = stats.bootstrap((values,), np.mean, n_resamples=2000, rng=np.random.default_rng(0)).confidence_interval
    return f"{values.mean():.2f} [{found.low:.2f}, {found.high:.2f}]"


@pytest.fixture
def study(distinct_study: Path) -> Path:
    return distinct_study


def emergence_step(contexts: pd.DataFrame, model: str) -> float:
    """The step at which a curve that passes 1 once is 1, on the line between the two checkpoints."""
    part = of(contexts, model=model)
    steps = sorted(set(part["step"]))
    curve = [of(part, step=step)["gain"].mean() for step in steps]
    at = max(i for i, gain in enumerate(curve) if gain <= 1)
    return steps[at] + (1 - curve[at]) / (curve[at + 1] - curve[at]) * (steps[at + 1] - steps[at])


def test_the_summary(study: Path, tmp_path: Path) -> None:
    study = Path(shutil.copytree(study, tmp_path / "study"))
    gains, r2, silenced = (read_table(study, name) for name in ("gain", "r2", "interventions"))
    contexts = read_table(study, "contexts").assign(gain=lambda t: t["gain"] - 0.5)
    contexts.to_parquet(study / "results" / "contexts.parquet")
    expected = []
    for model in MODELS:
        gain, step = (
            with_ends(mean_over_nouns(of(gains, model=model, step=400), "gain")),
            emergence_step(contexts, model),
        )
        expected.append(
            f"{model}: a scene with the noun makes its word easier to predict: gain {gain} nats at step 400, above 1 "
            f"nat from step {step:,.0f} on (6 nouns, 2 seeds)."
        )
    for model in MODELS:
        curve = {step: of(r2, model=model, step=step)["r2"].mean() for step in (100, 200, 400)}
        top = max(curve, key=lambda step: curve[step])
        expected.append(
            f"{model}: co-occurrence explains at most {100 * curve[top]:.0f}% of the gain's variance over nouns "
            f"(step {top})" + (f", {100 * curve[400]:.0f}% at the last checkpoint." if top < 400 else ".")
        )
    for model, seed in RUNS:
        (row,) = of(silenced, model=model, seed=seed, step=400, kind="aggregate", denominator="row").to_dict("records")
        expected.append(
            f"{model}, seed {seed}: silencing the aggregate heads found in each example itself (at all positions, by "
            f"zeros) moves the matched surprisal from {row['original']:.2f} to {row['intervened']:.2f} nats, and "
            f"silencing as many random heads from all layers to {row['control']:.2f} ± {row['control_sd']:.2f} (the "
            "first of 2 rows, in the order that their table gives)."
        )
    assert summary(study) == expected


def test_a_model_that_never_passes_is_said_to(made: Made) -> None:
    study = made(seeds=1, shift=-9.0)
    assert summary(study)[0].endswith("nats at step 400, never lastingly above 1 nat (6 nouns, 1 seed).")
    assert summary(study)[0].startswith("gpt2-4l: a scene with the noun makes its word harder to predict: gain -4.88 [")
    none = "it is not shown that a scene with the noun makes its word easier to predict: gain 0.00 ["
    for values in ((-1.0, 1.0), (-3e-14, -2e-14)):  # nothing, and the rest of a rounding
        gain = read_table(study, "gain").assign(gain=lambda t, values=values: list(values) * (len(t) // 2))
        gain.to_parquet(study / "results" / "gain.parquet")
        assert summary(study)[0].startswith(f"gpt2-4l: {none}")
    gain.assign(gain=[-3e-4, -2e-4] * (len(gain) // 2)).to_parquet(study / "results" / "gain.parquet")
    said = summary(study)[0]
    assert re.search(r"harder to predict: gain -0\.000[23]\d* \[-0\.0003, -0\.0002\] nats", said), said


@pytest.mark.parametrize(
    ("low", "high", "p", "said"),
    [
        (0.1, 0.3, 0.01, "easier"), (-0.3, -0.1, 0.04, "harder"), (0.1, 0.3, np.nan, "easier"),
        (0.1, 0.3, 0.05, "not shown"), (-0.0015, -0.0003, 0.14, "not shown"), (-0.1, 0.3, 0.01, "not shown"),
    ],
)  # fmt: skip
def test_a_gain_is_found_if_its_interval_and_its_corrected_test_say_so(
    low: float, high: float, p: float, said: str
) -> None:
    row = {"model": "m", "step": 4, "gain": (low + high) / 2, "gain_low": low, "gain_high": high, "p_holm": p,
           "gain_seed_low": np.nan, "gain_seed_high": np.nan, "nouns": 6, "seeds": 1}  # fmt: skip
    final = TablePart("final", pd.DataFrame([row]), "")
    (found,) = findings_of([Section("behaviour", "", "", [final])])
    assert said in found.text.split(": gain")[0]


def test_one_seed_says_nothing_of_an_architecture_and_many_have_a_range(made: Made) -> None:
    page = sg.report(made("one", models=("a", "b"), seeds=1)).read_text(encoding="utf-8")
    assert "a and b: one seed each. These findings are about the trained weights" in page
    study = made("many", seeds=3)
    assert "These findings are about" not in sg.report(study).read_text(encoding="utf-8")
    table = read_table(study, "interventions")
    table["intervened"] = [4.5, 5.25, 5.0]
    table.to_parquet(study / "results" / "interventions.parquet")
    said = summary(study)
    means = [of(read_table(study, "gain"), seed=seed, step=400)["gain"].mean() for seed in range(3)]
    half = stats.t.ppf(0.975, 2) * np.std(means, ddof=1) / 3**0.5
    over = f"3 seeds, [{np.mean(means) - half:.2f}, {np.mean(means) + half:.2f}] over them)."
    assert said[0].endswith(over)
    assert said[-1] == (
        "gpt2-4l, the range of 3 seeds: silencing the aggregate heads found in each example itself (at all positions, "
        "by zeros) moves the matched surprisal from 2.00–2.00 to 4.50–5.25 nats, and silencing as many random heads "
        "from all layers to 2.10–2.10."
    )


def test_the_lead(made: Made) -> None:
    study = made()
    config = read_json(study / "config.json") | {"asked": {"nouns": 11, "contexts": 7}}
    write_json(study / "config.json", config)
    write_json(study / "data" / "statistics.json", {"tokens": 12345, "env_tokens": 2469, "vocabulary": 6789})
    assert _lead(StudyResults.read(study)) == (
        "12,345 tokens, 20% of them ENV; vocabulary 6,789; 6 nouns × 3 contexts. 5 of the 11 requested nouns are too "
        "rare in the corpus to be probed. 4 of the 7 requested contexts have words that are not in its vocabulary."
    )
    write_json(study / "data" / "statistics.json", {
        "tokens": 1000, "env_tokens": 100, "vocabulary": 6, "documents_with_image": 50, "patches": 4,
    })  # fmt: skip
    assert _lead(StudyResults.read(study)).startswith("1,000 tokens, 30% of them patches of images; vocabulary 6; ")


def test_captions_say_which_intervals_and_which_levels(study: Path, made: Made) -> None:
    for folder, bands in (
        (study, "95 % intervals over 2 seeds (Student's t)"),
        (made(seeds=1), "95 % intervals over nouns (BCa)"),
    ):
        read = StudyResults.read(folder)
        parts = behaviour(read).parts + [part for section in SECTIONS for part in section(read).parts]
        captions = {(type(part).__name__, part.name): part.caption for part in parts}
        assert captions["FigurePart", "surprisal"].endswith(f"The bands are {bands}.")
        assert captions["FigurePart", "gain"].endswith(f"The bands are {bands}.")
        assert {name for kind, name in captions if kind == "TablePart"} <= TABLES.keys()
        assert {name for kind, name in captions if kind == "FigurePart"} <= FIGURES.keys()
    assert all(text in TABLES["interventions"] for text in ("*** p < 0.001", "(Holm)", "more than a tenth"))
    for named in (("FigurePart", "shares"), ("TablePart", "shares"), ("TablePart", "flow-effect")):
        assert captions[named].count("25 %") == 1
        assert "30 %" not in captions[named]
    assert "Holm-corrected over the model's checkpoints" in TABLES["final"]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (None, "30 %"), ([0.3], "30 %"), ([0.125], "12.5 %"), ([0.1, 0.4], "10 % or 40 %"),
        ([np.nan, 0.2], "20 % or 30 %"),
    ],
)  # fmt: skip
def test_the_threshold_of_heads_is_that_of_the_tables(told: list[float] | None, said: str) -> None:
    """Tables of earlier versions do not say theirs, which was 30 %."""
    shares = pd.DataFrame({"share": [0.1, 0.2]})
    if told is not None:
        shares["threshold"] = np.resize(told, 2)
    assert threshold_of(with_threshold(shares)) == said


def test_the_terminal(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summarise(study)
    told = capsys.readouterr().err.splitlines()
    gains, silenced = read_table(study, "gain"), read_table(study, "interventions")
    expected = []
    for model, seed in RUNS:
        gain = with_ends(of(gains, model=model, seed=seed, step=400)["gain"].to_numpy())
        expected.append(f"{model} seed {seed}, step 400: gain {gain} nats")
    expected += [
        f"{row['model']} seed {row['seed']}, step {row['step']}: {row['kind']} heads ({row['denominator']}, span "
        f"{row['span']}, selection {row['selection']}, mode {row['mode']}) "
        f"{row['heads_per_example']:.2f} per example; surprisal {row['original']:.2f}, silenced "
        f"{row['intervened']:.2f}, random heads {row['control']:.2f} ± {row['control_sd']:.2f}"
        for row in silenced.to_dict("records")
    ]
    assert told == expected


def test_the_terminal_of_heads(study: Path, tmp_path: Path) -> None:
    """Every cell of the printed tables, found by its column."""
    tables_of = {"interventions": "Surprisal of the right answer", "steering": "How often the answer is right",
                 "detectors": "Is the answer wrong?", "heads": "Heads with the largest share"}  # fmt: skip
    for name in tables_of:
        table = read_table(study, {"detectors": "monitor", "heads": "shares"}.get(name, name))
        if name == "interventions":
            table = table.assign(p_holm=table["p"] / 3)
        table.to_parquet(tmp_path / f"{name}.parquet")
    blocks = recipe_of_heads.summary(tmp_path).split("\n\n")
    assert len(blocks) == 4
    for name, title in tables_of.items():
        (block,) = (block for block in blocks if block.startswith(title))
        head, *lines = block.splitlines()[1:]
        columns = head.split()
        table = pd.read_parquet(tmp_path / f"{name}.parquet")
        if name == "heads":
            table = of(table, denominator="row").sort_values("share", ascending=False).head(8)
        assert len(lines) == len(table)
        for line, row in zip(lines, table.to_dict("records"), strict=True):
            shown = dict(zip(columns, line.split(), strict=True))
            for column, text in shown.items():
                value = row[column]
                assert text == (f"{value:.3f}" if isinstance(value, float) else str(value)), (name, column)
        assert {"interventions": "control_sd", "steering": "short", "detectors": "auroc_high",
                "heads": "null_selected"}[name] in columns  # fmt: skip


def test_the_paper(study: Path) -> None:
    layers = {"mamba2-4l": 3, "gpt2-4l": 3}  # in another order than the tables' own
    found = tables(StudyResults.read(study), list(layers), layers)
    about = {
        "recipe": "paper-x", "corpus": {"tokens": 1000, "env_tokens": 370, "vocabulary": 4321}, "nouns": 6,
        "contexts": 2, "tokens_per_step": 64, "steps": 400, "summary": ["one", "two"],
        "sizes": {"gpt2-4l": 123_456, "mamba2-4l": 98_765},
    }  # fmt: skip
    lines = markdown(found, about).splitlines()
    assert lines[2] == (
        "1,000 tokens, 37% of them ENV; vocabulary 4,321; 6 nouns × 2 contexts. Training reads the corpus 25.6 times. "
        "Layers count from 0; the study's stand as it prints them. Surprisal is in nats."
    )
    assert lines[-2:] == ["- one", "- two"]
    gains, silenced = read_table(study, "gain"), read_table(study, "interventions")
    last, cut = [], []
    for model in layers:
        part = of(gains, model=model, step=400)
        p = [
            stats.ttest_1samp(mean_over_nouns(of(gains, model=model, step=s), "gain"), 0).pvalue
            for s in (100, 200, 400)
        ]
        rank = sorted(p).index(p[2])
        corrected = max(sorted(p)[i] * (3 - i) for i in range(rank + 1))
        shown = "< 0.001" if corrected < 0.001 else f"{corrected:.3f}"
        matched, mismatched = (mean_over_nouns(part, name).mean() for name in ("matched", "mismatched"))
        last.append(
            f"| {model} | {about['sizes'][model]:,} | {400 * 64:,} | {matched:.2f} | {mismatched:.2f} | "
            f"{with_ends(mean_over_nouns(part, 'gain'))} | {shown} | 2 |"
        )
        for step in (200, 400):
            rows = of(silenced, model=model, step=step, kind="aggregate", denominator="row")
            mean = {name: rows[name].mean() for name in rows if rows[name].dtype == float}
            p_max = rows["p"].max()
            mark = "***" if p_max < 0.001 else "**" if p_max < 0.01 else "*" if p_max < 0.05 else ""
            layer = mean["mean_layer"]
            cut.append(
                f"| {model} | {step} | row | {mean['heads_per_example']:.2f} | {layer:.2f} | {(layer + 0.5) / 3:.2f} | "
                f"{mean['intervened']:.2f}{mark} | {mean['control']:.2f} ± {mean['control_sd']:.2f} | "
                f"{mean['original']:.2f} |"
            )
    of_model = [line for line in lines if line.startswith(("| gpt2-4l |", "| mamba2-4l |"))]
    assert of_model == [*last, *cut]
    (one,) = (line for line in lines if "5,000" in line)
    assert one == "| *the study, GPT-2 of 12 layers* | 5,000 | ? | 2.28 | 7.38 | 0.57 | 6.51*** | 6.39 | 6.38 |"


def test_the_papers_layers_and_heads(study: Path) -> None:
    found = tables(StudyResults.read(study), ["gpt2-4l"], {"gpt2-4l": 3})
    saliency, heads = read_table(study, "saliency"), read_table(study, "heads")
    for step in (100, 200, 400):
        values = [
            of(saliency, model="gpt2-4l", step=step, layer=layer, region="env")["value"].mean() for layer in range(3)
        ]
        rows = of(found["layers"], step=step)
        assert rows["layer"].tolist() == [0, 1, 2]
        np.testing.assert_allclose(rows["saliency"], values)
        np.testing.assert_allclose(rows["share"], np.array(values) / sum(values))
        assert set(rows["seeds"]) == {2}
        for denominator in ("matrix", "row"):
            own = of(heads, model="gpt2-4l", step=step, kind="aggregate", denominator=denominator)
            (row,) = of(found["heads"], step=step, denominator=denominator).to_dict("records")
            examples = sum(
                of(saliency, model="gpt2-4l", seed=seed, step=step)["examples"].iloc[0] for seed in (0, 1)
            )  # fmt: skip
            assert row["heads_per_example"] == pytest.approx(len(own) / examples)
            assert row["mean_layer"] == pytest.approx(own["layer"].mean())
            assert row["depth"] == pytest.approx((own["layer"].mean() + 0.5) / 3)
            assert row["seeds"] == 2


def test_dials_by_hand() -> None:
    rng = np.random.default_rng(8)
    gains = pd.DataFrame([
        {"kind": kind, "gap": gap, "model": "m", "seed": seed, "step": step, "target": noun, "matched": m,
         "mismatched": mm, "gain": mm - m}
        for kind in ("grounding", "recall") for gap in (2, 4) for step in (10, 20) for seed in (0, 1)
        for noun in ("ball", "book", "dog") for m, mm in [rng.uniform(1, 9, 2)]
    ])  # fmt: skip
    r2 = pd.DataFrame([
        {"gap": gap, "model": "m", "step": step, "seed": seed, "r2": rng.uniform(0.1, 0.9)}
        for gap in (2, 4) for step in (10, 20) for seed in (0, 1)
    ])  # fmt: skip
    table = dials_summary(gains, r2, "gap")
    text = dials_markdown(table.assign(tokens=table["step"] * 300), "gap")
    rows = [line for line in text.splitlines() if line.startswith("| m |")]
    expected, course = [], []
    for gap in (2, 4):
        cells = [
            with_ends(mean_over_nouns(of(gains, kind=kind, gap=gap, step=20), "gain"))
            for kind in ("grounding", "recall")
        ]
        explained = [of(r2, gap=gap, step=step)["r2"].mean() for step in (10, 20)]
        expected.append(f"| m | {gap} | {' | '.join(cells)} | {max(explained):.2f} | {explained[1]:.2f} |")
        for step, of_step in zip((10, 20), explained, strict=True):
            own, recall = (of(gains, kind=kind, gap=gap, step=step) for kind in ("grounding", "recall"))
            course.append(
                f"| m | {gap} | {step} | {step * 300:,} | {own['matched'].mean():.2f} | "
                f"{own['mismatched'].mean():.2f} | {own['gain'].mean():.2f} | {recall['gain'].mean():.2f} | "
                f"{of_step:.2f} |"
            )
    assert rows == [*expected, *course]
    (row,) = of(table, kind="recall", gap=4, step=20).to_dict("records")
    part = of(gains, kind="recall", gap=4, step=20)
    assert row["seed_gains"] == pytest.approx([of(part, seed=seed)["gain"].mean() for seed in (0, 1)])
    assert (row["nouns"], row["seeds"]) == (3, 2)
    assert pd.isna(row["r2"])


def test_silenced_heads_of_dials(study: Path) -> None:
    silenced = read_table(study, "interventions").assign(gap=3)
    text = silenced_markdown(silenced_heads(silenced, "gap"), "gap")
    rows = [line for line in text.splitlines() if re.match(r"\| (gpt2|mamba2)-4l", line)]
    expected = []
    for model in MODELS:
        for kind, denominator, step in (
            ("aggregate", "row", 200),
            ("aggregate", "row", 400),
            ("gather", "matrix", 400),
        ):
            part = of(silenced, model=model, kind=kind, denominator=denominator, step=step)
            mean = " | ".join(
                f"{part[x].mean():.2f}" for x in ("heads_per_example", "original", "intervened", "control")
            )
            expected.append(f"| {model} | 3 | {kind} | {denominator} | {mean} |")
    assert rows == expected
    assert silenced_markdown(pd.DataFrame(), "gap") == ""


def test_the_table_of_the_readme() -> None:
    found = json.loads((page_tables.RESULTS / "paper-childes" / "paper.json").read_text())
    assert "layers_from" not in found  # these results are of a version whose layers counted from 1
    lines = page_tables.study().splitlines()
    for model in ("gpt2-4l", "mamba2-12l", "lstm-4l"):
        row = max(of(pd.DataFrame(found["curves"]), model=model).to_dict("records"), key=lambda row: row["step"])
        shown = f"{row['matched']:.2f} | {row['mismatched']:.2f} | {row['gain']:.2f}"
        shown += f" [{row['gain_low']:.2f}, {row['gain_high']:.2f}]"
        assert any(line.startswith(f"| {model} | {shown} |") for line in lines)
    for row in of(pd.DataFrame(found["interventions"]), model="gpt2-12l", denominator="row").to_dict("records"):
        mark = "***" if row["p"] < 0.001 else "**" if row["p"] < 0.01 else "*" if row["p"] < 0.05 else ""
        assert (
            f"| gpt2-12l | {row['step']:,} | {row['heads_per_example']:.2f} | {row['mean_layer'] - 1:.2f} | "
            f"{row['intervened']:.2f}{mark} | {row['control']:.2f} ± {row['control_sd']:.2f} | {row['original']:.2f} |"
        ) in lines
    head = "| aggregate heads silenced | step | heads | mean layer | intervened | as many random heads | original |"
    assert lines.count(head) == 1
