"""Compiling every kernel that later parts launch, in several processes at once: a part of the GPU record.

    python -m benchmarks.gpu.compilation "padded ssd bfloat16"  # one job, in this process

Triton compiles a kernel on one core and keeps it on disk, from where the later parts read it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.common.inputs import Inputs, Shape
from benchmarks.gpu.context import ROOT, TAIL, Context

Job = Callable[[str], object]


def compilation(c: Context) -> None:
    names = list(jobs(c.dry))
    with ThreadPoolExecutor(1 if c.dry else max(1, min(16, (os.cpu_count() or 2) - 1))) as pool:
        rows = pool.map(partial(_one, c), names)
        for row in rows:
            c.record.add(**row)
            if row["exit_status"] != 0:
                c.write_failure(f"{row['job']}: {row['output_tail']}")


def _one(c: Context, name: str) -> dict[str, object]:
    start = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu.compilation", name, *(["dry"] if c.dry else [])]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=max(c.left, 1.0),
        )  # fmt: skip
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        code, output = None, "its time limit"
    tail = output[-TAIL:] if code else output if code is None else ""
    return {"job": name, "exit_status": code, "seconds": round(time.monotonic() - start, 1), "output_tail": tail}


def jobs(dry: bool) -> dict[str, Job]:
    """Name → what is run on a device, the longest first. Each one launches what a later part does."""
    from benchmarks.gpu import tiles
    from benchmarks.gpu.every_op import ON_GPU

    if dry:
        return {"tiles of attention_saliency": partial(_tiles, "attention_saliency", tiles.SMALL)}
    found: dict[str, Job] = {}
    for dtype in ("float32", "bfloat16"):
        found[f"attention {dtype}"] = partial(_attention, dtype)
        for case in ON_GPU:
            for family in ("attention", "weights", "ssd", "vocabulary"):
                found[f"{case} {family} {dtype}"] = partial(_ops, case, family, dtype)
    for kernel in tiles.CANDIDATES:
        found[f"tiles of {kernel}"] = partial(_tiles, kernel, tiles.shape_of(1024))
    for dtype in ("float32", "bfloat16"):
        found[f"vocabulary {dtype}"] = partial(_vocabulary, dtype)
        found[f"ssd {dtype}"] = partial(_ssd, dtype)
    return found


def _ops(case: str, family: str, dtype: str, device: str) -> None:
    from benchmarks.gpu.every_op import CASES, results

    results(CASES[case](dtype, device), "triton", [family])


def _attention(dtype: str, device: str) -> None:
    from benchmarks.gpu import graphs
    from benchmarks.gpu.tiles import shape_of

    for run in graphs.runs(Inputs(shape_of(1024, dtype), device, "triton")).values():
        run()


def _tiles(kernel: str, shape: Shape, device: str) -> None:
    from benchmarks.gpu import tiles

    # A candidate that does not compile is a row of the part `tiles`.
    [*tiles.rows(kernel, Inputs(shape, device, "triton"), _once)]


def _once(run: Callable[[], object]) -> float:
    run()
    return 1.0


def _vocabulary(dtype: str, device: str) -> None:
    from benchmarks.peers import surprisal

    x = surprisal.Inputs(surprisal.Shape(dtype=dtype), device, "triton")
    for stage in surprisal.STAGES:
        surprisal.PEERS[surprisal.SYMGROUND](x, stage)()


def _ssd(dtype: str, device: str) -> None:
    from benchmarks.peers import mamba

    shape = mamba.Shape(8, 1024, 24, 64, 1, 128, dtype=dtype)
    for stage in ("ssd", "ssd saliency"):
        mamba.prepare(stage, mamba.SYMGROUND, mamba.problem(stage, shape, device, "triton"))()


def main() -> None:
    name, dry = sys.argv[1], len(sys.argv) > 2
    jobs(dry)[name]("cpu" if dry else "cuda")
    if not dry:
        import torch

        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
