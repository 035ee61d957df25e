"""Time and memory of `sg.attention` as the text doubles, and the formula of its memory beside measured points.

    python -m benchmarks attention-scale --out benchmarks/results/attention-scale.json      # three minutes on a core

Mass and received of two groups and the prediction are read from every layer of one text. One model is mostly attention,
so its time shows how reading grows: four times as long for twice the text. In the other, of an ordinary shape, most of
the time of a short text is products with weights, which take twice as long. Times are the processor's. The formula is
then applied to a text of 32,768 tokens, which has not been run.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.common import alone
from benchmarks.common.measure import in_turns, processor_seconds
from benchmarks.common.memory import peak_in_subprocess
from benchmarks.scaling import LLAMA_70B, Llama, model_of

Run = Callable[[], Any]
GROUPS = 2
LENGTHS = (1024, 2048, 4096)
#: Name → the measured model, with random weights.
MODELS = {
    "mostly attention": Llama(4, 64, 8, 2, 64, 176, 1000),
    "an ordinary shape": Llama(8, 512, 8, 2, 64, 1408, 1000),
}
#: Name → the shape of a model that has not been run, in bfloat16.
LARGE = {
    "Llama-3-8B": Llama(32, 4096, 32, 8, 128, 14336, 128256, bytes_a_number=2),
    "Llama-3-70B": LLAMA_70B,
}


def result_bytes(m: Llama, T: int, groups: int = GROUPS) -> int:
    """Bytes in host memory of mass and received of one text, in float32; `sg.attention_memory` says the same.

    The groups of queries are ``groups`` and the prediction, and those of keys are ``groups``.
    """
    return 4 * m.L * m.H * (groups + 1) * (T + groups)


def pass_bytes(m: Llama, T: int) -> int:
    """Bytes that a forward pass of one text holds at a time, beside the weights.

    In the MLP these are the embeddings, the layer's input, the residual stream, its norm, and the three inner
    activations of the gated product. In attention they are the same without the residual stream, which is the input,
    and the keys, the values, and four times the queries while these are rotated. The rotation is held all the time.
    """
    mlp = 4 * m.E + 3 * m.M
    attention = 3 * m.E + 4 * m.H * m.D + 2 * m.Hk * m.D
    return T * (max(mlp, attention) + 2 * m.D) * m.bytes_a_number


def matrices_bytes(m: Llama, T: int) -> int:
    """Bytes of the attention matrices of one text, which eager attention returns in the dtype of the model."""
    return m.L * m.H * T * T * m.bytes_a_number


def prepared(m: Llama, T: int) -> tuple[Run, Run]:
    """(the forward pass alone, the pass that is read)"""
    import symground as sg

    model, ids = model_of(m, T), torch.randint(m.V, (1, T))
    first = torch.arange(T)[None] < T // 2
    groups = {"first half": first, "second half": ~first}

    @torch.inference_mode()
    def forward() -> None:
        model.model(ids, use_cache=False)

    said = sg.attention_memory(model, ids, rows=None, groups=groups, received=True)
    assert said == result_bytes(m, T), (said, result_bytes(m, T))
    return forward, lambda: sg.attention(model, ids, rows=None, groups=groups, received=True)


def reading(shape: dict[str, int], T: int) -> tuple[Run, Run]:
    """For `common/memory.py`: (a small model to read first, the measured run)."""
    return prepared(Llama(1, 32, 2, 1, 16, 64, 50), 16)[1], prepared(Llama(**shape), T)[1]


def points() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, m in MODELS.items():
        for T in LENGTHS:
            forward, read = prepared(m, T)
            taken = in_turns({"alone": forward, "reading": read}, 5, taking=processor_seconds)
            alone, seconds = (statistics.median(of) for of in taken.values())
            del forward, read
            held, peak = (
                peak_in_subprocess("benchmarks.attention_scale", "reading", held=only_held, shape=asdict(m), T=T)[
                    "peak_bytes"
                ]
                for only_held in (True, False)
            )
            rows.append(
                {"model": name, **asdict(m), "T": T, "seconds": seconds, "forward_seconds": alone, "held_bytes": held,
                 "peak_bytes": peak, "result_bytes": result_bytes(m, T), "pass_bytes": pass_bytes(m, T),
                 "matrices_bytes": matrices_bytes(m, T)}
            )  # fmt: skip
            print(f"{name}, T {T}", file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Each point, and in brackets how many times that of half the length."""
    lines = [
        "| model | T | time | beyond the forward pass | memory held | by the formula | matrices alone |",
        "|---|---|---|---|---|---|---|",
    ]
    half: dict[str, Any] = {}
    for row in rows:
        row = row | {"beyond": row["seconds"] - row["forward_seconds"]}
        before = half if half.get("model") == row["model"] else {}
        times, beyond, held = (
            f" ({row[of] / before[of]:.1f} ×)" if before else "" for of in ("seconds", "beyond", "held_bytes")
        )
        formula = row["result_bytes"] + row["pass_bytes"]
        lines.append(
            f"| {row['model']} | {row['T']:,} | {row['seconds']:.2f} s{times} | {row['beyond']:.2f} s{beyond} | "
            f"{row['held_bytes'] / 2**20:.1f} MiB{held} | {formula / 2**20:.1f} MiB | "
            f"{row['matrices_bytes'] / 2**20:,.0f} MiB |"
        )
        half = row
    return "\n".join(lines)


def large(T: int = 32768) -> str:
    lines = [f"| {T:,} tokens, by the formula | results, host | pass | matrices |", "|---|---|---|---|"]
    for name, m in LARGE.items():
        parts = (f"{size / 1e9:,.2f} GB" for size in (result_bytes(m, T), pass_bytes(m, T), matrices_bytes(m, T)))
        lines.append(f"| {name} | {' | '.join(parts)} |")
    return "\n".join(lines)


def main() -> None:
    arguments = alone.parser(__doc__).parse_args()
    rows = points()
    arguments.out.write_text(
        json.dumps({"machine_info": alone.machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    print(table(rows), large(), sep="\n\n")


if __name__ == "__main__":
    main()
