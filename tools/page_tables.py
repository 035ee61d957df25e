"""Tables of the README and the docs, made from the result files in this repository and from formulas.

python -m tools.page_tables      # writes them into their pages, between their marks
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import scaling
from benchmarks.peers.training import GIVEN_BACK, KEPT, PEERS, SHAPES, STAGE, Shape
from benchmarks.summary.tables import amount, machine_line, ratio_of
from symground.data.study_figures import STUDY, STUDY_INTERVENTIONS
from symground.reports.formats import FEW, control_cell, number, stars, with_interval

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

#: Goal that a CPU can show → its label in the README; an empty label means the one before.
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
    """Time and memory of symground and its peers."""
    result = _read("bench-cpu.json")
    goals = {goal["goal"]: goal for goal in result["goals"]}
    lines = ["| | ours | peer | theirs | theirs / ours | goal |", "|---|---|---|---|---|---|"]
    for text, called in _SHOWN.items():
        goal = goals[text]
        mark = "" if goal["status"] == "met" else ", open"
        lines.append(
            f"| {called} | {amount(goal['of'], goal)} | {goal['to']['peer']} | {amount(goal['to'], goal)} | "
            f"{_of_ours(goal, goal['ratio'])} | ≥ {_of_ours(goal, goal['bound'])}{mark} |"
        )
    measured = [goal for goal in result["goals"] if goal["ratio"] is not None]
    met = sum(goal["status"] == "met" for goal in measured)
    lines += [
        "",
        f"{machine_line(result)}. Times are medians ± the interquartile range; symground and its peers run in turns in "
        "one process. Memory is the peak above the inputs. theirs / ours is above 1 if symground is faster or takes "
        f"less memory. Of all goals, {len(measured)} can be judged on this machine, and {met} of these are met; "
        f"{len(result['goals']) - len(measured)} need a GPU or a peer that is not installed here.",
    ]
    return "\n".join(lines)


def _of_ours(goal: dict[str, Any], ratio: float) -> str:
    """Theirs over ours: the ratio of a speed-up, and one over the ratio of a fraction."""
    return ratio_of(goal | {"at_least": True}, ratio if goal["at_least"] else 1 / ratio)


def study() -> str:
    """The results beside the study's."""
    found = _read("paper-childes/paper.json")
    since = found.get("layers_from", 1)  # older results count layers from 1
    last = {row["model"]: row for row in sorted(found["curves"], key=lambda row: row["step"])}
    lines = ["| model | matched | mismatched | gain, 95 % over nouns | the study |", "|---|---|---|---|---|"]
    for model, row in last.items():
        said = STUDY["words"]["lstm"] if model.startswith("lstm") else "matched well below mismatched"
        gain = with_interval(row["gain"], row["gain_low"], row["gain_high"])
        lines.append(f"| {model} | {number(row['matched'])} | {number(row['mismatched'])} | {gain} | {said} |")
    lines += [
        "",
        "| aggregate heads silenced | step | heads | mean layer | intervened | as many random heads | original |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in STUDY_INTERVENTIONS.to_dict("records"):
        lines.append(
            f"| the study, {STUDY['interventions']['layers']} layers | {row['step']:,.0f} | "
            f"{row['heads per example']:.2f} | {row['mean layer']:.2f} | "
            f"{row['intervened']:.2f}*** | {row['control']:.2f} | {row['original']:.2f} |"
        )
    rows = [row for row in found["interventions"] if row["denominator"] == "row" and row["model"].startswith("gpt2")]
    for row in rows:
        if row["model"] == "gpt2-12l" or row["step"] == max(r["step"] for r in rows):
            lines.append(
                f"| {row['model']} | {row['step']:,} | {row['heads_per_example']:.2f} | "
                f"{row['mean_layer'] - since:.2f} | {row['intervened']:.2f}{stars(row['p'])} | "
                f"{control_cell({'short': None} | row | {'examples': 1})} | {row['original']:.2f} |"
            )
    return "\n".join(lines)


#: FLOP/s: 40 % of an H100's nominal bfloat16 rate.
_RATE = 4e14


def large() -> str:
    """The estimated cost of a trace of a 70B model."""
    lines = [
        "| T | checkpointing | PFLOP | seconds on one GPU | GB beside the weights | eager's matrices, TB |",
        "|---|---|---|---|---|---|",
    ]
    model = scaling.LLAMA_70B
    for T in (2048, 8192, 32768):
        for again in (False, True):
            flops = scaling.trace_flops(model, 1, T, again)
            peak = scaling.trace_bytes(model, 1, T, checkpoint=again, saliency=False)["peak"]
            eager = scaling.eager_bytes(model, 1, T)
            lines.append(
                f"| {T:,} | {'yes' if again else 'no'} | {flops / 1e15:.3g} | {flops / _RATE:.3g} | {peak / 1e9:.3g} | "
                f"{eager / 1e12:.2g} |"
            )
    return "\n".join(lines)


def traces() -> str:
    """Measured traces of small models beside the formula."""
    result = _read("scaling.json")
    lines = [
        "| layers | width | B | T | checkpointing | GFLOP | seconds | GFLOP/s | formula, MB | held, MB | "
        "held / formula | peak, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['L']} | {row['E']} | {row['B']} | {row['T']:,} | {'yes' if row['checkpoint'] else 'no'} | "
        f"{row['flops'] / 1e9:.0f} | {row['seconds']:.2f} | {row['flops_a_second'] / 1e9:.0f} | "
        f"{row['formula_bytes'] / 1e6:.0f} | {row['held_bytes'] / 1e6:.0f} | {row['held_of_formula']:.2f} | "
        f"{row['peak_bytes'] / 1e6:.0f} |"
        for row in result["trace"]
    ]
    return "\n".join([*lines, "", _measured_on(result)])


def grids() -> str:
    """Measured small grids of probes beside the formula."""
    result = _read("scaling.json")
    lines = [
        "| model | contexts × nouns | tokens after the shared beginning | GFLOP | seconds | GFLOP/s | "
        "bytes on disk per pair |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['preset']} | {row['contexts']} × {row['nouns']} | {row['tokens']:.1f} | {row['flops'] / 1e9:,.0f} "
        f"| {row['seconds']:.2f} | {row['flops_a_second'] / 1e9:.0f} | {row['bytes_a_pair']:.1f} |"
        for row in result["score"]
    ]
    return "\n".join([*lines, "", _measured_on(result)])


def _measured_on(result: dict[str, Any]) -> str:
    info, rates = result["machine_info"], result["rates"]
    return (
        f"{info['cpu']['brand']}, {info['threads']} threads, torch {info['torch']}, matrix products at "
        f"{rates['float32_flops'] / 1e9:.0f} GFLOP/s, copies at {rates['copy_bytes'] / 1e9:.1f} GB/s."
    )


def childes() -> str:
    """One model over its training on all transcripts with a scene."""
    found = _read("childes-report.json")
    r2 = {row["step"]: row.get("r2") for row in found["r2"]}
    of_step = 24 * 128  # --batch-size and --length of the command on the page
    rows = found["training"]
    shown = {
        "step": [f"{row['step']}" for row in rows],
        "tokens (M)": [f"{row['step'] * of_step / 1e6:.1f}" for row in rows],
        "matched surprisal (nats)": [number(row["matched"]) for row in rows],
        "mismatched": [number(row["mismatched"]) for row in rows],
        "gain": [number(row["gain"]) for row in rows],
        "R² on log co-occurrence": [number(r2[row["step"]]) if r2[row["step"]] else "–" for row in rows],
    }
    lines = [f"| {name} | {' | '.join(values)} |" for name, values in shown.items()]
    lines.insert(1, "|---" * (len(rows) + 1) + "|")
    of_row = {"kind": "aggregate", "denominator": "row"}
    (silenced,) = (row for row in found["interventions"] if of_row.items() <= row.items())
    random = control_cell(silenced)
    beside = f"; there are {random} for a comparison" if random == FEW else f", and as many random heads to {random}"
    return "\n".join([
        *lines, "",
        f"Silencing each example's own aggregate heads changes the matched surprisal from "
        f"{number(silenced['original'])} to {number(silenced['intervened'])} nats{beside}. These are "
        f"{silenced['heads_per_example']:.1f} of the 16 heads per example, selected by their share of the row, in "
        "three of the contexts.",
    ])  # fmt: skip


def training() -> str:
    """The time of a training step beside its peers', and of saving checkpoints and resume states."""
    rows: list[dict[str, Any]] = _read("bench-cpu.json")["rows"]

    def row(stage: str, peer: str, shape: Shape) -> dict[str, Any]:
        (found,) = (r for r in rows if r["stage"] == stage and r["peer"] == peer and shape.row.items() <= r.items())
        return found

    widths = ["width 768" if "768" in shape.model else "width 128" for shape in SHAPES]
    sizes = [f"{width}, B{s.B} T{s.T} V{s.vocabulary}" for width, s in zip(widths, SHAPES, strict=True)]
    lines = [f"| | {' | '.join(sizes)} |", "|---|---|---|---|"]
    for peer in PEERS:
        times = [f"{row(STAGE, peer, shape)['seconds'] * 1e3:,.0f} ms" for shape in SHAPES]
        lines.append(f"| {peer} | {' | '.join(times)} |")
    kept, back = (row("memory between steps", name, SHAPES[0])["seconds_a_step"] for name in (KEPT, GIVEN_BACK))
    lines += [
        "",
        "While symground trains, the process keeps freed memory. Otherwise malloc returns full logits to the system "
        f"after each step that materialises them, and such a step takes {back * 1e3:.0f} ms instead of "
        f"{kept * 1e3:.0f}. With the extension it makes no difference.",
        "",
        "| synced to disk | a checkpoint | all checkpoints, of the training time | a resume state | "
        "all states, of the training time |",
        "|---|---|---|---|---|",
    ]
    for width, shape in ((widths[0], SHAPES[0]), (widths[2], SHAPES[2])):
        step, checkpoint, state = (row("checkpoints", what, shape) for what in ("step", "checkpoint", "state"))
        dense = step["checkpoints"] * checkpoint["seconds"] / (step["steps"] * step["seconds"])
        often = state["seconds"] / step["seconds_between_states"]
        lines.append(
            f"| {width} | {checkpoint['seconds'] * 1e3:.0f} ms | {dense:.2%} | {state['seconds'] * 1e3:,.0f} ms | "
            f"{often:.2%} |"
        )
    plan = row("checkpoints", "step", SHAPES[0])  # the same for every shape
    return "\n".join([
        *lines, "",
        f"This training has {plan['steps']:,} steps, {plan['checkpoints']} checkpoints (`{plan['schedule']}`), and a "
        f"resume state every {plan['seconds_between_states']:.0f} seconds.",
    ])  # fmt: skip


#: Page → its tables.
PAGES = {
    "README.md": {"bench": bench, "study": study},
    "docs/findings.md": {"childes": childes},
    "docs/training.md": {"training": training},
    "docs/scaling.md": {"large": large, "traces": traces, "grids": grids},
}
TABLES = {(page, name): make for page, tables in PAGES.items() for name, make in tables.items()}


def table(page: str, name: str) -> str:
    """A table with its marks."""
    return f"<!-- {name}: python -m tools.page_tables -->\n{TABLES[page, name]()}\n<!-- end of {name} -->"


def main() -> None:
    for page, tables in PAGES.items():
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        for name in tables:
            pattern = re.compile(rf"<!-- {name}: .*?<!-- end of {name} -->", re.S)
            text, times = pattern.subn(lambda _, page=page, name=name: table(page, name), text)
            if times != 1:
                raise ValueError(f"{page}: expected one pair of marks for the table {name!r}, got {times}")
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
