"""A dial of the generated corpus: gain and its controls over training, for each value of the dial."""

from __future__ import annotations

from typing import Any

import pandas as pd

from symground.analysis.causal import enough
from symground.analysis.statistics import gain_interval
from symground.reports.figures import PALETTE, figure_of, svg_of
from symground.reports.formats import FEW, number, with_interval

#: Kind of gain → its heading, in the order of the table.
KINDS = {
    "grounding": "gain", "recall": "recall of a spoken word", "seen": "gain, pairs that occurred",
    "unseen": "gain, pairs that never occurred", "category": "gain of the category's word",
}  # fmt: skip


def summary(gains: pd.DataFrame, r2: pd.DataFrame, dial: str) -> pd.DataFrame:
    """A table with a row per kind, value of the dial, model and checkpoint.

    Args:
        gains: kind, the dial's column, model, seed, step, target, matched, mismatched, gain (nats).
        r2: the dial's column, model, seed, step, r2, slope.
        dial: the name of the dial.

    Returns:
        A DataFrame. Its columns:

        - kind, the dial's column, model, step;
        - matched, mismatched, gain: means over nouns and seeds;
        - gain_low, gain_high: 95 % bootstrap interval over nouns, each noun's mean over seeds;
        - seed_gains: the seeds' mean gains; nouns, seeds: their numbers;
        - r2: R² on co-occurrence, mean over seeds; for the kind "grounding" only, None if there is none.
    """
    rows = []
    means = r2.groupby([dial, "model", "step"])["r2"].mean().to_dict() if len(r2) else {}
    names = ["kind", dial, "model", "step"]
    for key, frame in gains.groupby(names, sort=True):
        of: dict[str, Any] = dict(zip(names, key, strict=True))
        by_noun = frame.groupby("target")[["matched", "mismatched", "gain"]].mean()
        by_seed = frame.groupby("seed")["gain"].mean()
        mean, low, high = gain_interval(by_noun)
        explained = means.get((of[dial], of["model"], of["step"])) if of["kind"] == "grounding" else None
        rows.append(
            {
                **of, "step": int(of["step"]), "matched": by_noun["matched"].mean(),
                "mismatched": by_noun["mismatched"].mean(), "gain": mean, "gain_low": low, "gain_high": high,
                "seed_gains": by_seed.tolist(), "nouns": len(by_noun), "seeds": len(by_seed),
                "r2": None if explained is None or pd.isna(explained) else float(explained),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame, dial: str) -> str:
    """A table of the last checkpoints, and a table of all checkpoints."""
    kinds = [kind for kind in KINDS if (table["kind"] == kind).any()]
    heads = [KINDS[kind] for kind in kinds]
    lines = [
        f"{dial}: gain at the last checkpoint (nats; 95 % interval over nouns), and the highest and the last R² of the "
        "gain on log co-occurrence.",
        "",
        f"| model | {dial} | {' | '.join(heads)} | R², highest | R², last |",
        "|---|---|" + "---|" * (len(heads) + 2),
    ]
    for model in sorted(table["model"].unique()):
        for value in sorted(table[dial].unique()):
            part = table[(table["model"] == model) & (table[dial] == value)]
            cells = [_last(part[part["kind"] == kind]) for kind in kinds]
            course = part[part["kind"] == "grounding"].sort_values("step")["r2"].dropna()
            explained = [number(course.max()), number(course.iloc[-1])] if len(course) else ["–", "–"]
            lines.append(f"| {model} | {value} | {' | '.join([*cells, *explained])} |")
    lines += ["", f"| model | {dial} | step | tokens | matched | mismatched | {' | '.join(heads)} | R² |"]
    lines.append("|---|---|---|---|---|---|" + "---|" * (len(heads) + 1))
    for (model, value, step), part in table.groupby(["model", dial, "step"], sort=True):
        of_kind: dict[str, Any] = {row["kind"]: row for row in part.to_dict("records")}
        own = of_kind["grounding"]
        cells = [number(of_kind[kind]["gain"]) if kind in of_kind else "–" for kind in kinds]
        r2 = "–" if own["r2"] is None or pd.isna(own["r2"]) else number(own["r2"])
        surprisals = f"{number(own['matched'])} | {number(own['mismatched'])}"
        lines.append(f"| {model} | {value} | {step} | {own['tokens']:,} | {surprisals} | {' | '.join(cells)} | {r2} |")
    return "\n".join([*lines, ""])


def silenced_heads(interventions: pd.DataFrame, dial: str) -> pd.DataFrame:
    """Interventions at the last checkpoint: a row per kind of heads, denominator, value of the dial and model.

    Args:
        interventions: the studies' table, with the dial's column.
        dial: the name of the dial.

    Returns:
        A DataFrame. Its columns:

        - kind, denominator, the dial's column, model, step, seeds;
        - heads_per_example, original, intervened, control: means over seeds, surprisals in nats;
        - short: the share of the examples with too few heads to draw from, the largest over seeds.
    """
    keys = ["kind", "denominator", dial, "model", "step"]
    values = ["heads_per_example", "original", "intervened", "control"]
    grouped = interventions.assign(short=interventions["short"] / interventions["examples"]).groupby(keys)
    return grouped[values].mean().assign(short=grouped["short"].max(), seeds=grouped["seed"].nunique()).reset_index()


def silenced_markdown(table: pd.DataFrame, dial: str) -> str:
    """The table of :func:`silenced_heads` as text; empty if the table is."""
    if table.empty:
        return ""
    lines = [
        "",
        "Surprisal of matched probes (nats, mean over seeds) with heads silenced at the last checkpoint.",
        "",
        f"| model | {dial} | heads | denominator | per example | original | silenced | random heads |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.sort_values(["model", dial, "kind", "denominator"]).to_dict("records"):
        numbers = " | ".join(number(row[x]) for x in ("heads_per_example", "original", "intervened"))
        control = number(row["control"]) if enough(row["short"]) else FEW
        lines.append(f"| {row['model']} | {row[dial]} | {row['kind']} | {row['denominator']} | {numbers} | {control} |")
    return "\n".join([*lines, ""])


def _last(part: pd.DataFrame) -> str:
    if part.empty:
        return "–"
    row = part.sort_values("step").to_dict("records")[-1]
    return with_interval(row["gain"], row["gain_low"], row["gain_high"])


def curves(table: pd.DataFrame, dial: str) -> str:
    """Gain against training tokens as SVG: a panel per model and kind, a line per value, a thin line for each seed."""
    models = sorted(table["model"].unique())
    kinds = [kind for kind in KINDS if (table["kind"] == kind).any()]
    figure = figure_of(3.3 * len(kinds) + 1.0, 2.9 * len(models))
    panels = figure.subplots(len(models), len(kinds), sharex=True, sharey="row", squeeze=False)
    for model, of_model in zip(models, panels, strict=True):
        for kind, axes in zip(kinds, of_model, strict=True):
            part = table[(table["model"] == model) & (table["kind"] == kind)]
            for value, colour in zip(sorted(table[dial].unique()), PALETTE * 4, strict=False):
                line = part[part[dial] == value].sort_values("step")
                if line.empty:
                    continue
                tokens = line["tokens"] / 1e6
                axes.plot(tokens, line["gain"], color=colour, linewidth=1.6, label=str(value))
                for seed in range(min(map(len, line["seed_gains"]))):
                    course = [of_seeds[seed] for of_seeds in line["seed_gains"]]
                    axes.plot(tokens, course, color=colour, linewidth=0.6, alpha=0.5)
            axes.axhline(0, color="#888888", linewidth=0.8)
            axes.set(title=KINDS[kind], xlabel="tokens (millions)")
        of_model[0].set_ylabel(f"{model}: gain (nats)")
    panels[0][0].legend(title=dial)
    return svg_of(figure)
