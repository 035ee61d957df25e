"""The README's tables, from the result files in this repository.

python -m benchmarks.readme_tables      # writes them into README.md, between their marks
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.bench import amount, machine_line, ratio_of
from symground.reports.formats import stars
from symground.reports.sections.causal import STUDY_INTERVENTIONS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

#: Of the numbers to hold, those of the design that a CPU can show, and what they are called in the README.
_SHOWN = {
    "layer with saliency: faster than eager": "attention layer, forward + backward + saliency (B4 H12 T1024 D64)",
    "layer with saliency: time of SDPA forward + backward": "",
    "layer with saliency: extra memory of eager's": "its memory",
    "saliency alone: faster than eager A∘(dO Vᵀ)": "saliency alone, same shape",
    "saliency alone: faster than torch.compile of it": "",
    "trace: faster than Hugging Face eager": "whole-model trace, GPT-2 of 12 layers, B2 T1024",
    "trace: time of a frozen SDPA pass": "",
    "trace: peak memory of eager's": "its memory",
    "trace, activation checkpointing: peak memory of eager's": "its memory, activation checkpointing",
    "candidate surprisal: time of full logits": "surprisal of 100 words, N 8192 D 768 V 50257",
    "candidate surprisal: extra memory of full logits'": "its memory",
    "grid of probes: faster than one forward per (context, pair)": "100 × 100 nouns × 10 contexts, a pair",
    "grid of probes: faster than minicons, batches of 100": "",
    "sweep of all heads, exact: faster than hooked forwards": "sweep of 144 heads, exact, a head and probe",
    "sweep of all heads, exact: faster than TransformerLens": "",
    "sweep of all heads, first-order: faster than hooked forwards": "the same, first-order",
    "Mamba-2 training step: faster than transformers'": "Mamba-2 training step, 4 layers, B4 T512",
    "Mamba-2 saliency: faster than materialising M": "Mamba-2 saliency of a layer, B2 T1024",
    "training step, gpt2-4l B24 T128 V12714: time of transformers, SDPA's": "GPT-2 training step, B24 T128",
}


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def bench() -> str:
    """What it costs."""
    result = _read("bench-cpu.json")
    goals = {goal["goal"]: goal for goal in result["goals"]}
    lines = ["| | ours | peer | theirs | ratio | goal |", "|---|---|---|---|---|---|"]
    for text, called in _SHOWN.items():
        goal = goals[text]
        bound = f"{'≥' if goal['at_least'] else '≤'} {ratio_of(goal, goal['bound'])}"
        mark = "" if goal["status"] == "met" else ", open"
        lines.append(
            f"| {called} | {amount(goal['of'], goal)} | {goal['to']['peer']} | {amount(goal['to'], goal)} | "
            f"{ratio_of(goal, goal['ratio'])} | {bound}{mark} |"
        )
    measured = [goal for goal in result["goals"] if goal["ratio"] is not None]
    met = sum(goal["status"] == "met" for goal in measured)
    lines += [
        "",
        f"{machine_line(result)}. Medians ± interquartile range, peers in turns in one process; memory is the peak "
        f"above the inputs. {met} of the {len(measured)} goals that this machine can judge are met, "
        f"{len(result['goals']) - len(measured)} want a GPU or a peer that is not here.",
    ]
    return "\n".join(lines)


def study() -> str:
    """What agrees with the study."""
    found = _read("paper-childes/paper.json")
    last = {row["model"]: row for row in sorted(found["curves"], key=lambda row: row["step"])}
    lines = ["| model | matched | mismatched | gain, 95 % over nouns | the study |", "|---|---|---|---|---|"]
    for model, row in last.items():
        said = "no significant difference" if model.startswith("lstm") else "matched well below mismatched"
        gain = f"{row['gain']:.2f} [{row['gain_low']:.2f}, {row['gain_high']:.2f}]"
        lines.append(f"| {model} | {row['matched']:.2f} | {row['mismatched']:.2f} | {gain} | {said} |")
    lines += [
        "",
        "| aggregate heads silenced | step | heads | mean layer | intervened | as many random heads | original |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in STUDY_INTERVENTIONS.to_dict("records"):
        lines.append(
            f"| the study, 12 layers | {row['step']:,.0f} | {row['heads per example']:.2f} | {row['mean layer']:.2f} | "
            f"{row['intervened']:.2f}*** | {row['control']:.2f} | {row['original']:.2f} |"
        )
    rows = [row for row in found["interventions"] if row["denominator"] == "row" and row["model"].startswith("gpt2")]
    for row in rows:
        if row["model"] == "gpt2-12l" or row["step"] == max(r["step"] for r in rows):
            lines.append(
                f"| {row['model']} | {row['step']:,} | {row['heads_per_example']:.2f} | {row['mean_layer']:.2f} | "
                f"{row['intervened']:.2f}{stars(row['p'])} | {row['control']:.2f} ± {row['control_sd']:.2f} | "
                f"{row['original']:.2f} |"
            )
    return "\n".join(lines)


TABLES = {"bench": bench, "study": study}


def table(name: str) -> str:
    """With its marks."""
    return f"<!-- {name}: python -m benchmarks.readme_tables -->\n{TABLES[name]()}\n<!-- end of {name} -->"


def main() -> None:
    page = ROOT / "README.md"
    text = page.read_text(encoding="utf-8")
    for name in TABLES:
        pattern = re.compile(rf"<!-- {name}: .*?<!-- end of {name} -->", re.S)
        text = pattern.sub(lambda _, name=name: table(name), text)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
