"""The goals, and the ratios that a result file has for them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import gate as gate_peers
from benchmarks.peers import lens as lens_peers
from benchmarks.peers import mamba as mamba_peers
from benchmarks.peers import reading as reading_peers
from benchmarks.peers import score as score_peers
from benchmarks.peers import surprisal as surprisal_peers
from benchmarks.peers import sweep as sweep_peers
from benchmarks.peers import trace as trace_peers
from benchmarks.peers import training as training_peers
from benchmarks.peers.attention import (
    CLOSED,
    COMPILED_CLOSED,
    EAGER,
    FLASH,
    MATRIX,
    PACKED,
    PLAIN,
    SDPA,
    SINK,
    SOFTCAP,
    SYMGROUND,
    WITH_FORWARD,
)

Row = dict[str, Any]


def rows_of(result: dict[str, Any]) -> list[Row]:
    """A row per peer, stage and shape, from a pytest-benchmark file, a part of the GPU record or a bench.json."""
    if "benchmarks" in result:
        rows = [
            {**b["extra_info"], "seconds": b["stats"]["median"], "iqr": b["stats"]["iqr"],
             "rounds": b["stats"]["rounds"]}
            for b in result["benchmarks"]
        ]  # fmt: skip
    else:
        rows = [row for row in result["rows"] if "stage" in row]
    return [{**row, "seconds_a_pair": row["seconds"] / row["pairs"]} if "pairs" in row else row for row in rows]


def machine_of(result: dict[str, Any], file: Path) -> str:
    info = result.get("machine_info") or result.get("machine")  # the latter in what `python -m benchmarks` writes
    if info is None:  # a part of the GPU record: the file of the part `machine` is beside it
        beside = file.with_name("machine.json")
        info = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
        return f"{info.get('gpu') or 'a CPU, dry run'}, torch {info.get('versions', {}).get('torch')}"
    extension = ", without the C++ extension" if info.get("extension") is False else ""  # older files do not say
    device = info.get("gpu") or f"{info['cpu']['brand']}, {info['threads']} threads{extension}"
    return f"{device}, torch {info['torch']}"


@dataclass(frozen=True)
class Goal:
    """``of`` (stage, peer) against ``to``: a speed-up of at least ``bound``, or a fraction of at most ``bound``."""

    text: str
    where: dict[str, Any]
    of: tuple[str, str]
    to: tuple[str, str]
    bound: float
    quantity: str = "seconds"
    faster: bool = False
    why: str = ""
    """Why the goal is not met, if that is known."""

    def measured(self, rows: list[Row]) -> float | None:
        ours, theirs = (self._value(rows, *which) for which in (self.of, self.to))
        if not ours or not theirs:
            return None
        return theirs / ours if self.faster else ours / theirs

    def _value(self, rows: list[Row], stage: str, peer: str) -> float | None:
        found = [row[self.quantity] for row in self._rows(rows, stage, peer)]
        return statistics.median(found) if found else None

    def row(self, rows: list[Row], stage: str, peer: str) -> Row | None:
        """The measured row of one side; None if there is none."""
        return next(iter(self._rows(rows, stage, peer)), None)

    def _rows(self, rows: list[Row], stage: str, peer: str) -> list[Row]:
        # A peer may be measured twice, the second time beside the compiled ones.
        return [
            row
            for row in rows
            if row.get("stage") == stage and row.get("peer") == peer and self.quantity in row
            and not row.get("with_compiled") and all(row.get(key) == value for key, value in self.where.items())
        ]  # fmt: skip

    def met(self, measured: float) -> bool:
        return measured >= self.bound if self.faster else measured <= self.bound


CPU = {"B": 4, "H": 12, "T": 1024, "D": 64, "dtype": "float32"}
TRACE = {"B": 2, "T": 1024, "layers": 12, "dtype": "float32", "device": "cpu"}
LAYER, SALIENCY = ("layer", SYMGROUND), ("saliency", SYMGROUND)
_TRACED, _THIN, _EAGER = (("trace", n) for n in (trace_peers.TRACE, trace_peers.CHECKPOINTED, trace_peers.EAGER))


SURPRISAL = {"N": 8192, "D": 768, "V": 50257, "K": 100, "dtype": "float32"}
LOSS = {"N": 8192, "D": 768, "V": 50257, "dtype": "bfloat16"}
_SURPRISAL, _FULL = (("surprisal", name) for name in (surprisal_peers.SYMGROUND, surprisal_peers.FULL))
GRID = {"contexts": 10, "nouns": 100}
SWEEP = {"contexts": 8, "nouns": 32, "preset": "gpt2-12l-768"}


def mamba_goals() -> Iterator[Goal]:
    step = {"B": 4, "T": 512, "H": 8, "P": 64, "N": 64, "layers": 4, "dtype": "float32"}
    ours, theirs = (("mamba2 step", name) for name in (mamba_peers.SYMGROUND, mamba_peers.TRANSFORMERS))
    yield Goal(
        "Mamba-2 training step: faster than transformers'", step, ours, theirs, 3, faster=True,
        why="more than half of ours is the products of the weights, near the machine's rate, which both do alike",
    )  # fmt: skip
    yield Goal("Mamba-2 training step: peak memory of transformers'", step, ours, theirs, 1, "peak_bytes")
    layer = {"T": 1024, "H": 24, "P": 64, "N": 128, "dtype": "float32"}
    ours, theirs = (("ssd saliency", name) for name in (mamba_peers.SYMGROUND, mamba_peers.MATERIALISED))
    yield Goal("Mamba-2 saliency: faster than materialising M", layer, ours, theirs, 4, faster=True)
    yield Goal("Mamba-2 saliency: memory of materialising M", layer, ours, theirs, 1 / 8, "peak_bytes")


def training_goals() -> Iterator[Goal]:
    for shape in training_peers.SHAPES:
        for name in (training_peers.TRANSFORMERS, training_peers.NANOGPT):
            yield Goal(
                f"training step, {shape}: time of {name}'s", {**shape.row, "device": "cpu"},
                (training_peers.STAGE, training_peers.SYMGROUND), (training_peers.STAGE, name), 1,
                why="all but the loss is the same operations of PyTorch on either side: a tie where the loss is little",
            )  # fmt: skip


def gate_goals() -> Iterator[Goal]:
    """The goals of gate_heads on a CPU, against each way of plain PyTorch."""
    shape = {"B": 8, "T": 1024, "H": 12, "D": 64, "mixed": True, "dtype": "float32"}
    for what, where in (("", {}), (", filled", {"filled": True}), (", 12 masks", {"M": 12})):
        for name in (gate_peers.EAGER, gate_peers.FORMULA, gate_peers.COMPILED, gate_peers.COMPILED_FORMULA):
            yield Goal(
                f"gate_heads{what}: speed of {name}'s", {**shape, "M": 0, "filled": False, **where},
                ("gate", gate_peers.SYMGROUND), ("gate", name), 1, faster=True,
                why="both move as many bytes as memory allows; which is ahead differs between machines",
            )  # fmt: skip


def gpu_goals() -> Iterator[Goal]:
    for dtype in ("bfloat16", "float32"):
        where = {"B": 8, "T": 4096, "H": 12, "D": 64, "M": 0, "filled": False, "mixed": False, "dtype": dtype}
        ours, copy = ("gate", gate_peers.SYMGROUND), ("gate", gate_peers.COPY)
        yield Goal(f"gate_heads, {dtype}: speed of a copy", where, ours, copy, 0.9, faster=True)
    for T in (1024, 4096):
        where = {"B": 8, "H": 12, "T": T, "D": 64, "dtype": "bfloat16"}
        yield Goal(
            f"saliency alone, T {T}: time of the flash backward's", where, SALIENCY, ("backward", FLASH), 0.5
        )  # fmt: skip
        for stage in ("forward", "backward"):
            yield Goal(
                f"attention {stage}, T {T}: speed of SDPA flash's", where, (stage, SYMGROUND), (stage, FLASH), 0.9,
                faster=True,
            )  # fmt: skip
    for name in (surprisal_peers.LIGER, surprisal_peers.CCE, surprisal_peers.CCE_EXACT):
        ours = ("loss", surprisal_peers.SYMGROUND)
        yield Goal(f"training loss: speed of {name}'s", LOSS, ours, ("loss", name), 1, faster=True)
    yield Goal(
        "saliency alone, T 4096: memory of eager's layer", where, SALIENCY, ("layer", EAGER), 1 / 50,
        "peak_bytes",
    )  # fmt: skip


_GPU = tuple(gpu_goals())


def needs_cuda(goal: Goal) -> bool:
    return goal in _GPU


def weights_goals() -> Iterator[Goal]:
    """The goals of reading attention weights on a CPU."""
    ours, matrix = ("weights", SYMGROUND), ("weights", MATRIX)
    yield Goal("weights read: faster than eager", CPU, ours, matrix, 3, faster=True)
    yield Goal("weights read: extra memory of eager's", CPU, ours, matrix, 1 / 20, "peak_bytes")
    yield Goal(
        "weights read, with the forward pass: time of SDPA forward",
        CPU,
        ("weights", WITH_FORWARD),
        ("weights", SDPA),
        2,
    )
    ours, eager = ((reading_peers.STAGE, name) for name in (reading_peers.READ, reading_peers.EAGER))
    yield Goal("a model's attention read: faster than Hugging Face eager", TRACE, ours, eager, 2, faster=True)
    yield Goal("a model's attention read: peak memory of eager's", TRACE, ours, eager, 1 / 10, "peak_bytes")


def option_goals() -> Iterator[Goal]:
    """The goals of the options of attention on a CPU, against the plain layer."""
    for name, bound in ((SOFTCAP, 1.15), (SINK, 1.15), (PACKED, 0.4)):
        yield Goal(
            f"layer with saliency, {name}: time of the plain one's", CPU, ("options", name), ("options", PLAIN), bound
        )


GOALS: tuple[Goal, ...] = (
    Goal("layer with saliency: faster than eager", CPU, LAYER, ("layer", EAGER), 2.5, faster=True),
    Goal("layer with saliency: time of SDPA forward + backward", CPU, LAYER, ("layer", SDPA), 1.2),
    Goal("layer with saliency: extra memory of eager's", CPU, LAYER, ("layer", EAGER), 1 / 8, "peak_bytes"),
    Goal("saliency alone: faster than eager A∘(dO Vᵀ)", CPU, SALIENCY, ("saliency", CLOSED), 6, faster=True),
    Goal(
        "saliency alone: faster than torch.compile of it", CPU, SALIENCY, ("saliency", COMPILED_CLOSED), 3,
        faster=True,
    ),
    Goal("trace: faster than Hugging Face eager", TRACE, _TRACED, _EAGER, 1.65, faster=True),
    Goal("trace: time of a frozen SDPA pass", TRACE, _TRACED, ("trace", trace_peers.FROZEN), 1.1),
    Goal("trace: peak memory of eager's", TRACE, _TRACED, _EAGER, 0.46, "peak_bytes"),
    Goal("trace, activation checkpointing: peak memory of eager's", TRACE, _THIN, _EAGER, 0.09, "peak_bytes"),
    Goal("candidate surprisal: time of full logits", SURPRISAL, _SURPRISAL, _FULL, 1),
    Goal("candidate surprisal: extra memory of full logits'", SURPRISAL, _SURPRISAL, _FULL, 1 / 20, "peak_bytes"),
    *(
        Goal(f"grid of probes: faster than {name}", GRID, ("score", score_peers.SYMGROUND), ("score", name), bound,
             "seconds_a_pair", faster=True)
        for name, bound in ((score_peers.ONE_BY_ONE, 400), (score_peers.MINICONS, 50))
    ),
    *(
        Goal(f"sweep of all heads, {what}: faster than {called}", SWEEP, ("sweep", ours), ("sweep", name), bound,
             "seconds_a_pair", faster=True)
        for what, ours, bound in (
            ("exact", sweep_peers.EXACT, 2),
            ("at the prediction", sweep_peers.LAST, 10),
            ("first-order", sweep_peers.FIRST_ORDER, 50),
        )
        for name, called in ((sweep_peers.HOOKED, "hooked forwards"), (sweep_peers.LENS, "TransformerLens"))
    ),
    *mamba_goals(),
    Goal(
        "tuned lens, a step for all depths: time of a forward pass", {"model": "gpt2-12l-768"},
        (lens_peers.STAGE, lens_peers.STEP), (lens_peers.STAGE, lens_peers.FORWARD), 2,
    ),
    *training_goals(),
    *weights_goals(),
    *option_goals(),
    *gate_goals(),
    *_GPU,
)  # fmt: skip


def table(rows: list[Row]) -> str:
    """The goals that these rows can judge, as Markdown."""
    lines = ["| goal | bound | measured | |", "|---|---|---|---|"]
    form: Callable[[Goal, float], str] = lambda goal, x: f"{x:.3g} ×" if goal.faster else f"{x:.3g}"  # noqa: E731
    for goal in GOALS:
        measured = goal.measured(rows)
        if measured is not None:
            bound = f"{'≥' if goal.faster else '≤'} {form(goal, goal.bound)}"
            verdict = "met" if goal.met(measured) else "**missed**"
            lines.append(f"| {goal.text} | {bound} | {form(goal, measured)} | {verdict} |")
    return "\n".join(lines) if len(lines) > 2 else "No goal's shape is among these rows."
