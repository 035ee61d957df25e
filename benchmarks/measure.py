"""Time and memory of a run, and the least that the hardware allows."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.inputs import Shape

Run = Callable[[], Any]


def in_turns(runs: Mapping[str, Run], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of every run in every round, after one round that does not count.

    Round by round and not run by run: a noisy moment then hits all peers, and the ratios hold.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            gc.collect()
            once = seconds(run, device)
            if i:
                taken[name].append(once)
    return taken


def seconds(run: Run, device: str = "cpu") -> float:
    if device != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def gpu_seconds(run: Run, milliseconds: float = 30.0) -> float:
    """Median, the level-2 cache flushed before each repeat."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=milliseconds / 3, rep=milliseconds, return_mode="median")) / 1e3


def gpu_memory(run: Run) -> tuple[int, int]:
    """(peak, result) bytes above what was allocated before the run."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result_bytes(result)


def result_bytes(result: Any) -> int:
    """What a run hands over, which no implementation can do without."""
    if isinstance(result, Tensor):
        return result.numel() * result.element_size()
    if isinstance(result, tuple):
        return sum(result_bytes(x) for x in result)
    return 0


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖"""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


#: Products of T×T×D (the causal half of them is done) that a stage needs.
PRODUCTS = {"forward": 2, "backward": 5, "layer": 7, "saliency": 2, "flow": 2, "rows": 2}


def work(stage: str, shape: Shape) -> tuple[float, float]:
    """(floating-point operations, bytes to and from memory) that no implementation can go below."""
    B, H, T, D = shape.B, shape.H, shape.T, shape.D
    size = shape.element.itemsize
    tensor, saliency = B * H * T * D * size, 4 * B * T * T
    products = PRODUCTS[stage]
    flops = products * 2 * B * H * T * T * D / 2
    if stage == "rows":
        return products * 2 * B * H * 4 * T * D, 2 * tensor
    moved = {
        "forward": 4 * tensor,
        "backward": 8 * tensor,
        "layer": 12 * tensor + saliency,
        "saliency": 4 * tensor + saliency,
        "flow": 4 * tensor,
    }[stage]
    return flops, moved


def floor_seconds(stage: str, shape: Shape, rates: Mapping[str, float]) -> float | None:
    """The roofline: ``rates`` in bytes/s and operations/s, measured on this machine; float32 as three TF32 products."""
    rate = rates["bf16_flops"] if shape.element.itemsize == 2 else rates["tf32_flops"] / 3
    flops, moved = work(stage, shape)
    return max(flops / rate, moved / rates["copy_bytes"]) if rate else None


def median(values: list[float]) -> float:
    return statistics.median(values)
