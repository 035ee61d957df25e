"""The speed of every shipped configuration on an A100 and an H100, forecast from its machine code without a GPU.

    python -m benchmarks forecast                                # all → benchmarks/results
    python -m benchmarks forecast --kernel dq --size 64 --candidates   # other tiles than the shipped ones, best first
    python -m benchmarks forecast --beside benchmarks/results/gpu/NAME  # a record's measurements beside the forecasts

A turn is one pass through the loop that holds a kernel's products, without a mask, or through a whole kernel that has
no such loop. Its cycles are simulated (`multiprocessor.py`) with as many programs beside each other as fit, and not
less than the level-2 cache needs for the bytes that it reads. What the simulator says of published kernels
(`calibration.py`) gives the factor that turns simulated into expected speed, and its spread. The simulator flatters
small tiles.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.options import folder_of, integer
from benchmarks.forecast import calibration
from benchmarks.forecast.instructions import Loop, matrix_loops
from benchmarks.forecast.multiprocessor import PROCESSORS, bounds, cycles, operations
from benchmarks.kernels import table
from benchmarks.kernels.machine_code import of_cubin

import torch  # isort: skip

from symground.kernels.common.configs import Config  # isort: skip

RESULTS = table.ROOT / "benchmarks" / "results"
SIZES = (64, 128, 256)
#: Kernels without products.
WITHOUT = ("delta", "own_candidates")
#: What keys receive is summed for one group of queries: a tile seldom has more, and branches count as taken.
PROBLEM = table.Problem(sums=1)


@dataclass
class Forecast:
    """One configuration of one kernel on one GPU."""

    kernel: str
    architecture: str
    dtype: str
    size: int
    config: tuple[int, int, int, int]
    registers: int = 0
    spills: bool = False
    #: KiB of a program.
    shared: float = 0.0
    #: Programs on a multiprocessor beside each other.
    programs: int = 0
    #: Cycles of a turn of one program by pipe, and simulated beside the others.
    bounds: dict[str, float] | None = None
    simulated: float = 0.0
    cache: float = 0.0
    #: TFLOP/s of the products that the loop computes.
    speed: float = 0.0
    error: str = ""

    @property
    def turn(self) -> float:
        return max(self.simulated, self.cache)

    @property
    def limit(self) -> str:
        """What the turn spends most of its time on."""
        assert self.bounds is not None
        if self.cache >= self.simulated:
            return "level-2 cache"
        name, most = max(self.bounds.items(), key=lambda item: item[1])
        return name if most > 0.75 * self.simulated else "waiting"


Job = tuple[str, str, str, int, "Config | None"]


def forecast(job: Job) -> Forecast:
    kernel, architecture, dtype, size, config = job
    element = getattr(torch, dtype)
    config = config or table.shipped_for(kernel, architecture, element, size, PROBLEM)
    found = Forecast(kernel, architecture, dtype, size, tuple(config))
    try:
        compiled = table.compiled(kernel, architecture, element, size, config, PROBLEM)
    except Exception as error:
        found.error = str(error).strip().splitlines()[-1][:80] or type(error).__name__
        return found
    found.shared = compiled.metadata.shared / 1024
    resources = of_cubin(compiled.asm["cubin"])
    found.registers = resources.registers
    processor, warps = PROCESSORS[architecture], config.num_warps
    if compiled.metadata.shared > processor.device.shared:
        found.error = "shared memory"
        return found
    by_registers = processor.registers // (-(-found.registers // 8) * 8 * 32 * warps)
    by_shared = processor.device.shared // (compiled.metadata.shared + 1024)
    found.programs = max(1, min(by_registers, by_shared, processor.warps // warps))
    loop = _main(matrix_loops(compiled.asm["cubin"]))
    if loop is None:
        found.error = "no products"
        return found
    found.spills = resources.stack > 0 and any(x.base in ("LDL", "STL") for x in loop)
    found.bounds = bounds(loop, warps, processor)
    found.simulated = cycles(loop, warps, found.programs, processor) / found.programs
    found.cache = _bytes(loop) * warps / processor.cache
    work = sum(map(operations, loop)) * warps
    found.speed = work / found.turn * processor.device.processors * processor.clock / 1e12
    return found


def _main(loops: list[Loop]) -> Loop | None:
    """The loop with the most products; of several, the one without masks, which is the shortest."""
    most = max((sum(map(operations, loop)) for loop in loops), default=0)
    return min((loop for loop in loops if sum(map(operations, loop)) == most), key=len, default=None)


def _bytes(loop: Loop) -> int:
    """Bytes that a warp reads from global memory in a turn."""
    width = {".128": 16, ".64": 8}
    reads = (x for x in loop if x.base in ("LDGSTS", "LDG"))
    return sum(32 * next((size for name, size in width.items() if name in x.name), 4) for x in reads)


def calibrated(found: Iterable[Forecast]) -> dict[str, list[tuple[calibration.Published, float]]]:
    """Architecture → what was published, and the simulated speed of it."""
    best: dict[tuple[str, str, int], float] = {}
    for x in found:
        key = (x.kernel, x.architecture, x.size)
        best[key] = max(x.speed, best.get(key, 0.0))
    pairs: dict[str, list[tuple[calibration.Published, float]]] = {}
    for known in calibration.PUBLISHED:
        # Kernels that run one after the other: their times add up, in proportion to their products.
        shares = _shares(known.kernels)
        time = sum(shares[k] / best[k, known.architecture, known.size] for k in known.kernels)
        pairs.setdefault(known.architecture, []).append((known, 1 / (time * known.products)))
    return pairs


def _shares(kernels: tuple[str, ...]) -> dict[str, float]:
    products = {"attention_forward": 2, "dq": 3, "dkdv": 4}
    total = sum(products[k] for k in kernels)
    return {k: products[k] / total for k in kernels}


def factors(pairs: dict[str, list[tuple[calibration.Published, float]]]) -> dict[str, tuple[float, float, float]]:
    """Architecture → measured speed over simulated: the geometric mean, the least and the most."""
    found = {}
    for architecture, known in pairs.items():
        ratios = [published.speed / simulated for published, simulated in known]
        found[architecture] = (math.exp(statistics.mean(map(math.log, ratios))), min(ratios), max(ratios))
    return found


def page(rows: list[Forecast], pairs: dict[str, list[tuple[calibration.Published, float]]]) -> str:
    by = factors(pairs)
    lines = [
        "# Forecast speed of the shipped configurations", "",
        "From machine code alone; **nothing here was measured by us.** `python -m benchmarks forecast` writes this",
        "page. Cycles are those of one program's turn of its main loop, or of its whole code if it has no loop of",
        "products: what each pipe needs by itself, and the simulation with all programs that run beside each other.",
        "The speed counts the products that the kernel computes. Branches count as taken; attention_weights sums",
        "what keys receive for one group of queries, as most tiles have.", "",
        "## Calibration", "",
        "| GPU | kernels | D | simulated TFLOP/s | published | ratio | source |", "|---" * 7 + "|",
    ]  # fmt: skip
    for architecture, known in pairs.items():
        lines += [
            f"| {PROCESSORS[architecture].name} | {', '.join(x.kernels)} | {x.size} | {simulated:.0f} | {x.speed} | "
            f"{x.speed / simulated:.2f} | {x.source} |"
            for x, simulated in known
        ]
    lines += ["", "## Configurations", ""]
    lines.append(
        "| kernel | GPU | dtype | D | BM×BN, warps, stages | registers | KiB | programs | tensor | exp | fma | int "
        "| memory | L2 | simulated | limit | expected TFLOP/s |"
    )
    lines.append("|---" * 17 + "|")
    lines += [_line(x, *by[x.architecture]) for x in rows]
    return "\n".join(lines) + "\n"


def _line(x: Forecast, factor: float, low: float, high: float) -> str:
    m, n, warps, stages = x.config
    start = f"| {x.kernel} | {PROCESSORS[x.architecture].name} | {x.dtype} | {x.size} | {m}×{n}, {warps}, {stages} | "
    if x.error or x.bounds is None:
        return f"{start}{x.registers} | {x.shared:.0f} | {x.programs} |" + " |" * 7 + f" {x.error} | |"
    cycles_ = [x.bounds[name] for name in ("tensor", "mufu", "fma", "alu", "memory")] + [x.cache, x.simulated]
    numbers = " | ".join(f"{value:,.0f}" for value in cycles_)
    speed = f"{factor * x.speed:.0f} ({low * x.speed:.0f}–{high * x.speed:.0f})"
    limit = x.limit + (", spills" if x.spills else "")
    return f"{start}{x.registers} | {x.shared:.0f} | {x.programs} | {numbers} | {limit} | {speed} |"


def candidates(kernel: str, size: int) -> list[Config]:
    """Tiles that a GPU might run faster than the shipped ones."""
    sizes = (32, 64, 128)
    return [Config(m, n, w, s) for m in sizes for n in sizes for w in (4, 8) for s in (1, 2, 3) if m * n >= 2048]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", nargs="+", choices=PROCESSORS, default=[*PROCESSORS])
    parser.add_argument("--kernel", nargs="+", choices=[*table.KERNELS, *table.ROW_SUMS], help="default: all")
    parser.add_argument("--dtype", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument(
        "--size", nargs="+", type=integer(1, 256), default=list(SIZES), help="head sizes; default: %(default)s"
    )
    parser.add_argument("--candidates", action="store_true", help="tiles that might be faster; prints, saves nothing")
    parser.add_argument(
        "--beside", type=folder_of("a folder that `python -m benchmarks gpu` wrote", "tiles.json", "rows"),
        help="a folder of a GPU record: print its measurements beside forecasts",
    )  # fmt: skip
    parser.add_argument("--jobs", type=integer(), default=os.cpu_count() or 2, help="processes; default: %(default)s")
    arguments = parser.parse_args()
    if arguments.beside:
        return beside(arguments.beside, jobs=arguments.jobs)
    kernels = arguments.kernel or [k for k in (*table.KERNELS, *table.ROW_SUMS) if k not in WITHOUT]
    jobs: list[Job] = [
        (kernel, architecture, dtype, size, config)
        for architecture in arguments.architecture
        for kernel in kernels
        for dtype in arguments.dtype
        for size in ([table.HIDDEN_SIZE] if kernel in table.VOCABULARY else arguments.size)
        for config in (candidates(kernel, size) if arguments.candidates else [None])
        if kernel not in table.ROW_SUMS or dtype == "float32"
    ]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(forecast, jobs))
        if arguments.candidates:
            _print_candidates(rows)
            return 0
        known = {
            (kernel, x.architecture, "float16", x.size, config)
            for x in calibration.PUBLISHED for kernel in x.kernels for config in calibration.tiles(kernel)
        }  # fmt: skip
        pairs = calibrated(list(pool.map(forecast, sorted(known))))
    text = page(rows, pairs)
    print(text)
    whole = arguments.kernel is None and all(
        getattr(arguments, name) == parser.get_default(name) for name in ("architecture", "dtype", "size")
    )
    if whole:
        (RESULTS / "forecast.md").write_text(text, encoding="utf-8")
        saved = {
            "factors": factors(pairs), "triton": table.triton.__version__,
            "configurations": [asdict(x) for x in rows],
        }  # fmt: skip
        (RESULTS / "forecast.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    return 0


def _print_candidates(rows: list[Forecast]) -> None:
    for key in dict.fromkeys((x.kernel, x.architecture, x.dtype, x.size) for x in rows):
        kernel, architecture, dtype, size = key
        now = table.shipped_for(kernel, architecture, getattr(torch, dtype), size, PROBLEM)
        of = [x for x in rows if (x.kernel, x.architecture, x.dtype, x.size) == key and x.speed and not x.spills]
        print(f"{kernel} {architecture} {dtype} D {size}")
        for place, x in enumerate(sorted(of, key=lambda x: -x.speed), 1):
            if place <= 6 or Config(*x.config) == now:
                mark = " shipped" if Config(*x.config) == now else ""
                print(
                    f"  {place:>3}. {x.config} {x.speed:.0f} simulated TFLOP/s, {x.programs} programs, {x.limit}{mark}"
                )


def beside(folder: Path, results: Path = RESULTS, jobs: int = 1) -> int:
    """Print each row of a record's part `tiles` beside its forecast, which is made now if it is not a shipped one's."""
    saved = json.loads((results / "forecast.json").read_text(encoding="utf-8"))
    measured: list[dict[str, Any]] = json.loads((folder / "tiles.json").read_text(encoding="utf-8"))["rows"]
    expected = {
        (x["kernel"], x["architecture"], x["dtype"], x["size"], Config(*x["config"])): x["speed"]
        for x in saved["configurations"]
    }
    asked = [(x["kernel"], x["architecture"], x["dtype"], x["size"], Config(*x["config"])) for x in measured]
    missing = [job for job in dict.fromkeys(asked) if job not in expected and job[1] in PROCESSORS]
    with ProcessPoolExecutor(jobs) as pool:
        expected |= {job: found.speed for job, found in zip(missing, pool.map(forecast, missing), strict=True)}
    print("| kernel | dtype | D | T | BM×BN, warps, stages | expected TFLOP/s | measured |")
    print("|---" * 7 + "|")
    for x, job in zip(measured, asked, strict=True):
        factor, simulated = saved["factors"].get(x["architecture"], [1.0])[0], expected.get(job)
        m, n, warps, stages = x["config"]
        speed = f"{factor * simulated:.0f}" if simulated else "–"
        found = f"{x['speed']:.0f}" if "speed" in x else x["error"].splitlines()[0]
        tiles = f"{m}×{n}, {warps}, {stages}{' (shipped)' if x['shipped'] else ''}"
        print(f"| {x['kernel']} | {x['dtype']} | {x['size']} | {x['T']} | {tiles} | {speed} | {found} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
