"""The numbers of the tables on interventions, the monitor and steering, each against one recomputed."""

from __future__ import annotations

from typing import Any

from symground.reports.sections.monitor import _detectors_shown
from tests.reports.tables.recomputed import RUNS, holm
from tests.reports.tables.shown import Row, compare, ends, probability, starred, three, two


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
            "share of": row["denominator"], "span": row["span"], "selection": row["selection"], "mode": row["mode"],
            "heads per example": two(row["heads_per_example"]),
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
            "share of": row["denominator"], "span": row["span"], "selection": row["selection"], "mode": row["mode"],
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
            "Brier of a constant": three(row["brier_base"]), "calibration error": three(row["ece"]),
            "wrong": row["wrong"], "examples": row["examples"], "contexts": row["contexts"], "nouns": row["nouns"],
            "heads": two(row["heads"]),
        }
        for row in table("monitor").to_dict("records")
    ])  # fmt: skip
    why = ["", "no interval: in some resamples of 8 choices all are right, or all are wrong"]
    assert _detectors_shown(table("monitor").iloc[:2].assign(note=why))["note"].tolist() == why
    assert "note" not in _detectors_shown(table("monitor").assign(note=""))
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
