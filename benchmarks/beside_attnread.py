"""Attention matrices of a whole model from attnread and from `sg.attention`, with the same weights and tokens.

    python3 -m venv ENV && ENV/bin/pip install attnread==0.1.2      # it requires another torch than this project
    python -m benchmarks attnread --python ENV/bin/python --out benchmarks/results/attnread.json

attnread keeps the model's attention kernel. It runs the model once for each D positions of each layer that is asked
for, D being the size of a head, with values that are rows of the identity, and reads the weights off the output: at T
512, nine passes a layer. Ours are one pass. Each way has a process of its own. The ways take turns, but all heads of
attnread are read once, in two minutes. The numbers of both sides are compared, so each is an oracle of the other. The
model is a GPT-2 of 12 layers with random weights.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import alone
from benchmarks.common.options import integer, program
from benchmarks.peers.attnread import HEAD, WAYS
from benchmarks.peers.trace import Model

ROOT = Path(__file__).resolve().parents[1]


class Side:
    """A process that measures one way."""

    def __init__(self, python: str, way: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.peers.attnread", way, str(folder)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.way = way
        self.first: dict[str, Any] = json.loads(self._line())
        first = self.first.pop("first_seconds")
        self.taken: list[float] = [first] if way == "all" else []

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {WAYS[self.way]} ended with {self._process.wait()}")
        return line

    def time(self) -> None:
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        self.taken.append(float(self._line()))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def measured(python: str, model: Model, rounds: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """(a row for each way; the largest differences between the two sides' A)"""
    sides: list[Side] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = model.build("sdpa").state_dict()
        torch.save({"model": model.row, "weights": weights, "ids": model.batch()[0]}, folder / "model.pt")
        del weights
        try:
            for way in WAYS:
                print(f"{WAYS[way]} …", file=sys.stderr, flush=True)
                sides.append(Side(python if way in ("one", "all") else sys.executable, way, folder))
            for side in [side for side in sides if side.way != "all"] * rounds:
                side.time()
        finally:
            for side in sides:
                side.close()
        found = {way: torch.load(folder / f"{way}.pt") for way in WAYS}
    every = found["matrices"]
    apart = {
        "one head": float((found["one"] - found["layer"][:, HEAD[1]]).abs().max()),
        "all heads": float((found["all"] - every).abs().max()),
        "received": float((found["all"].sum(-2) - found["sums"].flatten(2)).abs().max()),
    }
    rows = [
        {"stage": "attnread", "peer": WAYS[side.way], **model.row, "seconds": statistics.median(side.taken),
         "rounds": len(side.taken), **side.first}
        for side in sides
    ]  # fmt: skip
    return rows, apart


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| | time | peak memory above the model |", "|---|---|---|"]
    lines += [f"| {row['peer']} | {row['seconds']:.2f} s | {row['peak_bytes'] / 2**20:,.0f} MiB |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = alone.parser(__doc__)
    parser.add_argument("--python", type=program, required=True, help="the Python of an environment with attnread")
    parser.add_argument("--length", type=integer(16), default=512, help="tokens of the text")
    parser.add_argument("--rounds", type=integer(), default=3, help="timed runs of each way but attnread's all heads")
    arguments = parser.parse_args()
    rows, apart = measured(arguments.python, Model(B=1, T=arguments.length), arguments.rounds)
    result = {"machine_info": alone.machine(), "largest_differences": apart, "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    print("Largest differences of A: " + ", ".join(f"{name} {value:.1e}" for name, value in apart.items()))


if __name__ == "__main__":
    main()
