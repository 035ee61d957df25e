"""Time and memory of a run, and the shortest time that the hardware allows."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.inputs import Shape

Run = Callable[[], Any]


def in_turns(
    runs: Mapping[str, Run], rounds: int, device: str = "cpu", taking: Callable[[Run, str], float] | None = None
) -> dict[str, list[float]]:
    """Seconds of every run in every round, after one round that does not count; ``taking`` measures a run.

    All runs are timed once per round, so that a noisy moment affects all peers and their ratios stay right.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            gc.collect()
            once = (taking or seconds)(run, device)
            if i:
                taken[name].append(once)
    return taken


def seconds(run: Run, device: str = "cpu") -> float:
    if device != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _cold()
    first.record()
    run()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def processor_seconds(run: Run, _: str = "cpu") -> float:
    """Seconds of the process, of which other work on the machine hardly takes any."""
    start = time.process_time()
    run()
    return time.process_time() - start


def gpu_lacks() -> str | None:
    """Why nothing can be measured on a GPU on this machine; None if it can."""
    if not torch.cuda.is_available():
        return "no CUDA device here"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"{torch.cuda.get_device_name()} is of compute capability {major}.{minor}, and the kernels need 8.0"
    return None


def _cold() -> None:
    """Empty the level-2 cache of the inputs. This also fills the queue before the first event is recorded, so that the
    time of a launch is not measured."""
    size = 4 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    torch.empty(size, dtype=torch.uint8, device="cuda").zero_()


def gpu_seconds(run: Run, milliseconds: float = 30.0) -> float:
    """The median time; the level-2 cache is flushed before each repeat."""
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
    """Bytes of the tensors that a run returns, which every implementation needs."""
    if isinstance(result, Tensor):
        return result.numel() * result.element_size()
    if isinstance(result, tuple):
        return sum(result_bytes(x) for x in result)
    return 0


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖"""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


#: Stage → the number of products of T×T×D that it needs, each with its causal half only.
PRODUCTS = {"forward": 2, "backward": 5, "layer": 7, "saliency": 2, "flow": 2, "rows": 2}


def work(stage: str, shape: Shape) -> tuple[float, float]:
    """The smallest possible (floating-point operations, bytes to and from memory) of a stage."""
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
    """The roofline of a stage: the time that this machine's measured ``rates`` (bytes/s, operations/s) allow."""
    return _roofline(*work(stage, shape), shape.dtype, rates)


def _roofline(flops: float, moved: float, dtype: str, rates: Mapping[str, float]) -> float | None:
    """The roofline. On a GPU a float32 product counts as three of TF32; a CPU has its own float32 rate."""
    if not rates:
        return None
    half = dtype in ("bfloat16", "float16")
    rate = rates.get("bf16_flops", rates["float32_flops"]) if half else _float32_rate(rates)
    return max(flops / rate, moved / rates["copy_bytes"])


def _float32_rate(rates: Mapping[str, float]) -> float:
    return max(rates["float32_flops"], rates.get("tf32_flops", 0.0) / 3)


def floor_of(row: Mapping[str, Any], rates: Mapping[str, float]) -> float | None:
    """The roofline of a row of a result file; None if the row measures more than a kernel."""
    stage, dtype = row.get("stage"), row.get("dtype", "float32")
    if stage in PRODUCTS and "D" in row:
        return floor_seconds(stage, Shape(row["B"], row["H"], row["T"], row["D"], dtype), rates)
    size = 2 if dtype in ("bfloat16", "float16") else 4
    if stage in ("surprisal", "loss"):
        N, D, V = row["N"], row["D"], row["V"]
        products = {"surprisal": 1, "loss": 3}[stage]  # one for the logits, and one for each of the two gradients
        moved = size * (N * D + V * D) * (1 if stage == "surprisal" else 2)
        return _roofline(2.0 * products * N * V * D, moved, dtype, rates)
    if stage == "gate":
        x = size * row["B"] * row["T"] * row["H"] * row["D"]
        read = (2 / 3 if row["mixed"] else 1) + (1 if row["filled"] else 0) * (2 / 3 if row["mixed"] else 1)
        return _roofline(0.0, x * (read + max(1, row["M"])), dtype, rates)
    if stage == "ssd saliency":
        B, T, H, P, G, N = (row[name] for name in ("B", "T", "H", "P", "G", "N"))
        flops = B * T * T * (G * N + H * P)  # C Bᵀ of a group and dY xᵀ of a head, the causal half
        return _roofline(flops, size * B * T * (2 * H * P + 2 * G * N) + 4 * B * T * T, dtype, rates)
    return None


def machine_rates(device: str) -> dict[str, float]:
    """Bytes/s of a copy (read and written) and operations/s of matrix products, each the best of several runs."""
    size, n = (1 << 30, 8192) if device == "cuda" else (1 << 28, 2048)
    x = torch.empty(2, size, dtype=torch.uint8, device=device).zero_()
    rates = {"copy_bytes": 2 * size / _best(partial(x[1].copy_, x[0]), device)}
    del x
    kinds = {"float32_flops": (torch.float32, "highest")}
    if device == "cuda":
        kinds |= {"bf16_flops": (torch.bfloat16, "high"), "tf32_flops": (torch.float32, "high")}
    before = torch.get_float32_matmul_precision()
    for name, (dtype, precision) in kinds.items():
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        rates[name] = 2 * n**3 / _best(partial(torch.matmul, a, b), device)
    torch.set_float32_matmul_precision(before)
    return rates


def _best(run: Run, device: str) -> float:
    return min(seconds(run, device) for _ in range(8))


def median(values: list[float]) -> float:
    return statistics.median(values)
