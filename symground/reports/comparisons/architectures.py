"""A comparison of architectures: gain over training for each gap between scene and talk."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from symground.analysis.statistics import LEARNT, gain_interval, holm
from symground.reports.figures import PALETTE, figure_of, svg_of
from symground.reports.formats import number, p_value, with_interval


def over_training(gains: pd.DataFrame, by: str) -> pd.DataFrame:
    """A row per value of the column ``by``, model and checkpoint.

    Args:
        gains: by, model, seed, step, target, matched, mismatched, gain (nats): a noun's means over its contexts.
        by: the column of the quantity that differs between the corpora, such as "gap".

    Returns:
        A DataFrame. Its columns:

        - by, model, step;
        - matched, mismatched, gain: means over nouns and seeds;
        - gain_low, gain_high: 95 % bootstrap interval over nouns, each noun's mean over seeds;
        - p: paired t-test over nouns of matched against mismatched surprisal, each noun's mean over seeds;
        - p_holm: p, corrected over all rows of the table;
        - p_seeds: one-sample t-test of the seeds' mean gains against 0, NaN for one seed;
        - seed_gains: the seeds' mean gains; nouns, seeds: their numbers.
    """
    rows = []
    for (value, model, step), frame in gains.groupby([by, "model", "step"], sort=True):
        by_noun = frame.groupby("target")[["matched", "mismatched", "gain"]].mean()
        by_seed = frame.groupby("seed")["gain"].mean().to_numpy(dtype=float)
        mean, low, high = gain_interval(by_noun)
        with np.errstate(invalid="ignore"):
            paired = stats.ttest_rel(by_noun["mismatched"], by_noun["matched"]).pvalue
            of_seeds = stats.ttest_1samp(by_seed, 0.0).pvalue if len(by_seed) > 1 else np.nan
        rows.append(
            {
                by: value, "model": model, "step": step, "matched": by_noun["matched"].mean(),
                "mismatched": by_noun["mismatched"].mean(), "gain": mean, "gain_low": low, "gain_high": high,
                "p": float(paired), "p_seeds": float(of_seeds), "seed_gains": by_seed.tolist(), "nouns": len(by_noun),
                "seeds": len(by_seed),
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    table.insert(list(table.columns).index("p") + 1, "p_holm", holm(table["p"].to_numpy(float)))
    return table


def learnt_at(training: pd.DataFrame, gap: int, model: str) -> int | None:
    """The first checkpoint from which on every seed's gain is above `LEARNT`; None if there is none."""
    of_model = training[(training["gap"] == gap) & (training["model"] == model)].sort_values("step")
    found = None
    for step, of_seeds in zip(of_model["step"], of_model["seed_gains"], strict=True):
        above = min(of_seeds) > LEARNT
        found = (found if found is not None else int(step)) if above else None
    return found


def markdown(training: pd.DataFrame, parameters: Mapping[str, int], distances: Mapping[int, float]) -> str:
    """A table of the last checkpoints, models by gaps, and a table of all checkpoints for each gap."""
    gaps, models = sorted(training["gap"].unique()), [m for m in parameters if (training["model"] == m).any()]
    heads = [f"gap {gap} ({distances[gap]:.0f} tokens)" for gap in gaps]
    most = training.to_dict("records")[0]
    seeds, each = ("one seed", "") if most["seeds"] == 1 else (f"mean of {most['seeds']} seeds", " in every seed")
    lines = [
        f"Gain at the last checkpoint (nats; 95 % interval over {most['nouns']} nouns, {seeds}), "
        f"and the step from which it stays above {LEARNT:g}{each}, or else the number of seeds that end above it. The "
        "gap is the number of utterances without an object between a scene and the talk about it, in the corpus and in "
        "the probes. In brackets is the mean distance from the ENV noun to the prediction.",
        "",
        f"| model | parameters | {' | '.join(heads)} |",
        "|---|---|" + "---|" * len(gaps),
    ]
    for model in models:
        cells = [_cell(training, gap, model) for gap in gaps]
        lines.append(f"| {model} | {parameters[model]:,} | {' | '.join(cells)} |")
    for gap, head in zip(gaps, heads, strict=True):
        lines += ["", f"### {head[0].upper()}{head[1:]}", "", *_checkpoints(training[training["gap"] == gap], models)]
    lines += [
        "",
        "p: paired t-test over nouns of matched against mismatched surprisal (each noun's mean over contexts and "
        "seeds), Holm-corrected over all rows of these tables.",
        "",
    ]
    return "\n".join(lines)


def _cell(training: pd.DataFrame, gap: int, model: str) -> str:
    of_model = training[(training["gap"] == gap) & (training["model"] == model)]
    if of_model.empty:
        return "not run"
    last = of_model.sort_values("step").to_dict("records")[-1]
    step, above = learnt_at(training, gap, model), sum(gain > LEARNT for gain in last["seed_gains"])
    when = f"step {step}" if step is not None else f"{above} of {last['seeds']} seeds" if above else "never"
    return f"{with_interval(last['gain'], last['gain_low'], last['gain_high'])}, {when}"


def _checkpoints(of_gap: pd.DataFrame, models: list[str]) -> list[str]:
    lines = [
        "| model | step | tokens | matched | mismatched | gain | seeds' gains | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in models:
        for row in of_gap[of_gap["model"] == model].sort_values("step").to_dict("records"):
            seeds = ", ".join(map(number, row["seed_gains"]))
            gain = with_interval(row["gain"], row["gain_low"], row["gain_high"])
            surprisals = f"{number(row['matched'])} | {number(row['mismatched'])}"
            lines.append(
                f"| {model} | {row['step']} | {row['tokens']:,} | {surprisals} | {gain} | {seeds} | "
                f"{p_value(row['p_holm'])} |"
            )
    return lines


def gains_over_gaps(training: pd.DataFrame) -> str:
    """Gain against training tokens as SVG: a panel per gap, a line per model, and a thin line for each seed."""
    gaps, models = sorted(training["gap"].unique()), sorted(training["model"].unique())
    figure = figure_of(3.4 * len(gaps) + 1.0, 3.1)
    panels = figure.subplots(1, len(gaps), sharey=True, squeeze=False)[0]
    for axes, gap in zip(panels, gaps, strict=True):
        for model, colour in zip(models, PALETTE * 4, strict=False):
            of_model = training[(training["gap"] == gap) & (training["model"] == model)].sort_values("step")
            if of_model.empty:
                continue
            tokens = of_model["tokens"] / 1e6
            axes.plot(tokens, of_model["gain"], color=colour, linewidth=1.6, label=model)
            for of_seed in np.array(of_model["seed_gains"].tolist()).T:
                axes.plot(tokens, of_seed, color=colour, linewidth=0.6, alpha=0.5)
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set(title=f"gap of {gap} utterances", xlabel="tokens (millions)")
    panels[0].set_ylabel("grounding gain G (nats)")
    panels[0].legend()
    return svg_of(figure)
