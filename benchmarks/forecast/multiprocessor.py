"""A small simulator of one multiprocessor: how many cycles a turn of a kernel's loop takes.

It has four schedulers, each with its own pipes, that issue an instruction of one of their warps a cycle; one tensor
core for `wgmma`, or one for each scheduler; one path to shared memory. It knows no caches: the level-2 cache is a bound
of its own (`forecast.py`). The rates are NVIDIA's (A100 and H100 whitepapers, and "Throughput of Native Arithmetic
Instructions" in the CUDA C++ Programming Guide).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.common.devices import DEVICES, Device
from benchmarks.forecast.instructions import Instruction, Loop


class Processor(NamedTuple):
    """A GPU, as far as its speed in a loop goes."""

    name: str
    device: Device
    #: Hz, while its tensor cores work.
    clock: float
    #: Floating-point operations of 16-bit products a cycle and multiprocessor; of TF32 half as many.
    tensor: int
    #: Cycles in which a scheduler's pipe takes one instruction of a warp.
    fma: int
    #: Bytes a cycle from the level-2 cache to one multiprocessor.
    cache: float
    registers: int
    warps: int


#: The cache's rates: A100's whitepaper has 5,120 bytes a cycle for all. H100's is measured: Luo et al. 2024
#: ("Benchmarking and dissecting the Nvidia Hopper GPU architecture").
PROCESSORS = {
    "sm_80": Processor("A100 SXM", DEVICES["sm_80"], 1.41e9, 2048, 2, 5120 / 108, 65536, 64),
    "sm_90": Processor("H100 SXM", DEVICES["sm_90"], 1.755e9, 4096, 1, 24.0, 65536, 64),
}

_ALU, _MUFU = 2, 8
#: Cycles from an instruction to its result, where the control bits leave it to a scoreboard.
_LATENCY = {"MUFU": 22, "LDS": 30, "LDSM": 33, "SHFL": 26, "LDG": 320, "LDC": 40, "HMMA": 33, "STS": 20, "R2UR": 14}
_FMA = ("FFMA", "FADD", "FMUL", "FFMA2", "FADD2", "FMUL2", "IMAD")
_MEMORY = ("LDS", "LDSM", "LDG", "LDGSTS", "LDL", "STS", "STG", "STL", "SHFL", "STSM", "REDUX")
_NO_PIPE = ("NOP", "BRA", "LDGDEPBAR", "DEPBAR", "BSSY", "BSYNC", "WARPSYNC", "CALL")
_BARRIER = 22
_FENCE = 20
_AFTER_PRODUCT = 26
#: The path to shared memory may be this many cycles behind before warps wait to issue to it.
_QUEUE = 40


def pipe_of(x: Instruction) -> str:
    """The part of the multiprocessor that an instruction occupies."""
    if x.base == "HGMMA":
        return "wgmma"
    if x.base == "HMMA":
        return "tensor"
    if x.base == "MUFU":
        return "mufu"
    if x.base in _FMA:
        return "fma"
    if x.base in _MEMORY:
        return "memory"
    if x.base == "BAR":
        return "barrier"
    if x.base == "WARPGROUP":
        return "wgmma wait" if "DEPBAR" in x.name else "none"
    if x.base in ("MEMBAR", "FENCE", "ERRBAR", "CCTL"):
        return "fence"
    if x.base in _NO_PIPE:
        return "none"
    return "uniform" if x.base[0] == "U" else "alu"


def operations(x: Instruction) -> int:
    """Floating-point operations of one warp's matrix instruction; of wgmma a quarter of the four warps'."""
    if x.base == "HGMMA":
        m, n, k = (int(size) for size in re.search(r"(\d+)x(\d+)x(\d+)", x.name).groups())  # type: ignore[union-attr]
        return 2 * m * n * k // 4
    if x.base == "HMMA":
        return 4096 if "16816" in x.name else 2048
    return 0


def occupied(x: Instruction, processor: Processor) -> float:
    """Cycles in which an instruction of one warp occupies its pipe of one scheduler."""
    pipe = pipe_of(x)
    if pipe == "tensor":
        # On H100 mma.sync reaches about 62 % of wgmma's rate; it is taken for half.
        rate = processor.tensor / 4 / (2 if processor.tensor > 2048 else 1)
        return operations(x) / rate * (2 if "TF32" in x.name else 1)
    if pipe == "memory":
        return float(_memory_cycles(x))
    return {"fma": float(processor.fma if x.base != "IMAD" else 2), "mufu": _MUFU, "alu": _ALU, "uniform": _ALU}.get(
        pipe, 0.0
    )


def _memory_cycles(x: Instruction) -> int:
    """Cycles of 128 bytes on the path to shared memory."""
    if x.base in ("SHFL", "REDUX"):
        return 1
    if x.base in ("LDSM", "STSM"):
        return int(x.name[-1]) if x.name[-1].isdigit() else 1
    if x.base == "LDGSTS":
        return 4
    return 4 if ".128" in x.name else 2 if ".64" in x.name else 1


def wgmma_cycles(x: Instruction, processor: Processor) -> float:
    """The tensor core's time, or shared memory's where it is longer: A has 64 rows there, B as many as columns."""
    n = int(re.search(r"64x(\d+)x", x.name)[1])  # type: ignore[index]
    from_shared = "gdesc" in x.operands.split(",")[1]
    rate = 4 * operations(x) / processor.tensor * (2 if "TF32" in x.name else 1)
    return max(rate, (16 if from_shared else 0) + n / 4)


def bounds(loop: Loop, warps: int, processor: Processor) -> dict[str, float]:
    """Cycles of one turn of the loop of one program by pipe, if nothing waited for anything else."""
    total: Counter[str] = Counter()
    for x in loop:
        pipe = pipe_of(x)
        if pipe == "wgmma":
            total["tensor"] += wgmma_cycles(x, processor) * warps / 4
        elif pipe == "memory":
            total["memory"] += occupied(x, processor) * warps
        else:
            total[pipe] += occupied(x, processor) * warps / 4
        total["issue"] += warps / 4
    return {name: total[name] for name in ("tensor", "mufu", "fma", "alu", "memory", "issue")}


@dataclass
class _Warp:
    number: int
    program: int
    place: int = 0
    turn: int = 0
    #: When it may issue its next instruction.
    ready: float = 0.0
    scoreboards: list[float] = field(default_factory=lambda: [0.0] * 6)
    waiting: bool = False
    products: int = 0


#: The turn from which the time is measured.
_STEADY = 2


def cycles(loop: Loop, warps: int, programs: int, processor: Processor, turns: int = 7) -> float:
    """Cycles in which each of ``programs`` of ``warps`` warps each, beside each other, does one turn, once steady."""
    return _Simulation(loop, warps, programs, processor, turns).run()


class _Simulation:
    def __init__(self, loop: Loop, warps: int, programs: int, processor: Processor, turns: int) -> None:
        self.loop, self.per_program, self.processor, self.turns = loop, warps, processor, turns
        self.pipes = [pipe_of(x) for x in loop]
        self.occupied = [occupied(x, processor) for x in loop]
        self.warps = [_Warp(i, i // warps) for i in range(warps * programs)]
        self.free: list[dict[str, float]] = [{} for _ in range(4)]  # by scheduler and pipe
        self.memory = self.tensor = 0.0
        #: By group of four warps: when its last product is done; the warps that have issued its next one.
        self.done: Counter[int] = Counter()
        self.issued: dict[tuple[int, int], list[float]] = {}
        self.at_barrier: dict[int, list[_Warp]] = {}

    def run(self) -> float:
        now, measured = 0.0, (0.0, 0.0)
        last: list[_Warp | None] = [None] * 4
        queues = [self.warps[q::4] for q in range(4)]
        begun = False
        while (least := min(warp.turn for warp in self.warps)) < self.turns:
            if least >= _STEADY and not begun:
                begun, measured = True, (now, self._progress())
            issued, soonest = False, float("inf")
            for q, queue in enumerate(queues):
                # The warp of the last cycle goes on, else the oldest; but none gets more than a turn ahead.
                behind = min((warp.turn for warp in queue), default=0)
                order = sorted(
                    (w for w in queue if not w.waiting),
                    key=lambda w: (w.turn > behind + 1, w is not last[q]),
                )
                for warp in order:
                    start = self._start(q, warp)
                    if start <= now:
                        self._issue(q, warp, now)
                        last[q], issued = warp, True
                        break
                    soonest = min(soonest, start)
            now = now + 1 if issued or soonest == float("inf") else float(-(-soonest // 1))
        start, before = measured
        return (now - start) * len(self.warps) / (self._progress() - before)

    def _progress(self) -> float:
        """Turns of all warps together."""
        return sum(warp.turn + warp.place / len(self.loop) for warp in self.warps)

    def _start(self, q: int, warp: _Warp) -> float:
        """The earliest time at which the warp's next instruction can be issued."""
        x, pipe = self.loop[warp.place], self.pipes[warp.place]
        start = max(warp.ready, *(t for i, t in enumerate(warp.scoreboards) if x.waits >> i & 1), 0.0)
        if pipe in ("fma", "alu", "mufu", "uniform", "tensor"):
            return max(start, self.free[q].get(pipe, 0.0))
        if pipe == "memory":
            return max(start, self.memory - _QUEUE)
        if pipe == "wgmma wait":
            return max(start, self.done[warp.number // 4] + _AFTER_PRODUCT)
        return start

    def _issue(self, q: int, warp: _Warp, now: float) -> None:
        x, pipe = self.loop[warp.place], self.pipes[warp.place]
        stall = max(x.stall, 1)
        result = now + stall
        if pipe in ("fma", "alu", "mufu", "uniform", "tensor"):
            self.free[q][pipe] = max(self.free[q].get(pipe, 0.0), now) + self.occupied[warp.place]
            result = now + (_LATENCY.get(x.base, 20) if x.writes != 7 or pipe in ("mufu", "tensor") else max(stall, 6))
        elif pipe == "memory":
            self.memory = max(self.memory, now) + self.occupied[warp.place]
            result = self.memory + _LATENCY.get(x.base, 30)
        elif pipe == "wgmma":
            self._product(x, warp, now)
        elif pipe == "fence":
            stall = max(stall, _FENCE)
            result = now + stall
        if x.writes != 7:
            warp.scoreboards[x.writes] = max(warp.scoreboards[x.writes], result)
        if x.reads != 7:
            warp.scoreboards[x.reads] = max(warp.scoreboards[x.reads], now + 12)
        warp.ready = now + stall
        if pipe == "barrier":
            self._barrier(warp, now)
        warp.place += 1
        if warp.place == len(self.loop):
            warp.place, warp.turn = 0, warp.turn + 1

    def _product(self, x: Instruction, warp: _Warp, now: float) -> None:
        """A wgmma begins when all four warps of its group have issued it."""
        group = warp.number // 4
        times = self.issued.setdefault((group, warp.products), [])
        times.append(now)
        warp.products += 1
        if len(times) == 4:
            self.tensor = max(self.tensor, now + 8) + wgmma_cycles(x, self.processor)
            self.done[group] = self.tensor  # type: ignore[assignment]
            del self.issued[group, warp.products - 1]

    def _barrier(self, warp: _Warp, now: float) -> None:
        there = self.at_barrier.setdefault(warp.program, [])
        there.append(warp)
        warp.waiting = True
        if len(there) == self.per_program:
            for other in there:
                other.waiting, other.ready = False, max(other.ready, now + _BARRIER)
            there.clear()
