"""One program (thread block) of a launch: its threads take each instruction together.

Lockstep is one of the orders in which a GPU may run them. That the others give the same is what the checks of
`memory.py` are for: without a race, the order between two barriers does not matter. Where a part of the threads branch
ahead, they wait there for the others, which meanwhile do nothing that threads do together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tests.ptx.memory import Access, Array, FaultError, GlobalMemory, SharedMemory
from tests.ptx.program import Address, Constant, Instruction, Name, Operand, Program, Register, Special

#: The bits of a register, by its width.
BITS: dict[int, Any] = {1: np.bool_, 16: np.uint16, 32: np.uint32, 64: np.uint64}
#: The types of PTX; bf16 and tf32 are handled as bits.
TYPES: dict[str, Any] = {
    "pred": np.bool_, "f16": np.float16, "f32": np.float32, "f64": np.float64, "bf16": np.uint16,
    **{f"{kind}{width}": np.dtype(f"{of}{width // 8}").type
       for kind, of in (("b", "u"), ("u", "u"), ("s", "i")) for width in (8, 16, 32, 64)},
}  # fmt: skip


class Block:
    """A program's threads, registers and memories."""

    def __init__(
        self, index: tuple[int, int, int], grid: tuple[int, int, int], threads: int, registers: int,
        memory: GlobalMemory, shared: SharedMemory, parameters: dict[str, tuple[str, Any]],
    ) -> None:  # fmt: skip
        x, y, z = index
        self.index, self.grid, self.threads, self.parameters = index, grid, threads, parameters
        #: The program's number in the launch, from 1.
        self.number = 1 + x + grid[0] * (y + grid[1] * z)
        self.memory, self.shared = memory, shared
        self.thread = np.arange(threads, dtype=np.int32)
        self.lane, self.warp = self.thread % 32, self.thread // 32
        #: None: never written, or being written by a wgmma.
        self.registers: list[Array | None] = [None] * registers
        self.products: Any = None  # the state of wgmma, made by its first instruction
        self.place = 0
        #: The threads that run, None for all; and place → the threads that have branched to it and wait there.
        self.active: Array | None = None
        self._waiting: dict[int, Array] = {}

    def access(self, thread: Array) -> Access:
        """These threads of the program, for global memory."""
        return Access(self.number, thread, self.shared.last_barrier)

    def branch(self, target: int, mask: Array | None) -> int | None:
        """The threads of ``mask``, or all that are active (None), branch. It returns where to go on."""
        active = np.ones(self.threads, np.bool_) if self.active is None else self.active
        taken = active if mask is None else mask & active
        if not taken.any():
            return None
        if self.active is None and taken.all():
            return target
        if target <= self.place:
            raise FaultError("is divergent: some threads of the program go back and others do not")
        self._waiting[target] = taken | self._waiting.get(target, taken)
        self.active = active & ~taken
        return None if self.active.any() else self.meet(min(self._waiting))

    def meet(self, place: int) -> int:
        """Threads that wait at the place go on with those that have come there."""
        waiting = self._waiting.pop(place, None)
        if waiting is not None and self.active is not None:
            self.active = self.active | waiting
            if self.active.all():
                self.active = None
        return place

    def special(self, name: str) -> Array:
        if name == "%tid.x":
            return self.thread.view(np.uint32)
        kind, _, axis = name.partition(".")
        value = {"%ctaid": self.index, "%nctaid": self.grid, "%tid": (0, 0, 0), "%ntid": (self.threads, 1, 1)}[kind]
        return np.array(value["xyz".index(axis)], np.uint32)


#: Runs one instruction for the threads of a mask, or for all (None). It may return where to go on: a place, or END.
Run: TypeAlias = Callable[[Block, "Array | None"], "int | None"]
END = -1


class Decoder:
    """What an instruction is decoded with: the registers' places, and how operands are read and written."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.places: dict[str, int] = {}

    def place(self, register: Operand) -> int:
        assert isinstance(register, Register), register
        return self.places.setdefault(register.name, len(self.places))

    def reader(self, operand: Operand, of: str) -> Callable[[Block], Array]:
        """The operand's value as the PTX type ``of``: [threads], or [] if it is the same for all."""
        to = TYPES[of]
        if isinstance(operand, Constant):
            value = _constant(operand.bits, to)
            return lambda block: value
        if isinstance(operand, Special):
            return lambda block: block.special(operand.name).view(to)  # type: ignore[union-attr]
        assert isinstance(operand, Register), operand
        place, size = self.place(operand), np.dtype(to).itemsize
        narrow = np.dtype(f"u{size}") if to is not np.bool_ and size < np.dtype(BITS[operand.width]).itemsize else None

        def read(block: Block) -> Array:
            value = block.registers[place]
            if value is None:
                raise FaultError(f"reads {operand.name}, which nothing has written or a wgmma is writing")
            if narrow is not None:
                value = value.astype(narrow)
            found: Array = value.view(to)
            return found

        return read

    def writer(self, operand: Operand) -> Callable[[Block, Array, Array | None], None]:
        """Write values of the register's own size, [threads] or []."""
        if operand == Name("_"):  # the result is dropped
            return lambda block, value, mask: None
        assert isinstance(operand, Register), operand
        place, bits = self.place(operand), BITS[operand.width]

        def write(block: Block, value: Array, mask: Array | None) -> None:
            value = np.asarray(value)
            new = value.view(bits)
            if new.ndim == 0:
                new = np.full(block.threads, new)
            if mask is not None:
                old = block.registers[place]
                # A thread that has never written the register holds a value that no program counts on.
                new = np.where(mask, new, _unset(bits, block.threads) if old is None else old)
            block.registers[place] = new

        return write

    def address(self, operand: Operand, of: str) -> Callable[[Block], Array]:
        """Bytes, [threads]; ``of`` is u64 for global memory, u32 for shared memory."""
        assert isinstance(operand, Address), operand
        base, offset = self.reader(operand.base, of), operand.offset

        def read(block: Block) -> Array:
            address = base(block).astype(np.int64) + offset
            return address if address.ndim else np.full(block.threads, address)

        return read

    def label(self, operand: Operand) -> int:
        assert isinstance(operand, Name), operand
        return self.program.labels[operand.name]


def _constant(bits: int, to: Any) -> Array:
    if to is np.bool_:
        return np.array(bits != 0)
    size = np.dtype(to).itemsize
    return np.array(bits & ((1 << (8 * size)) - 1), BITS[8 * size] if size > 1 else np.uint8).view(to)


def _unset(bits: Any, threads: int) -> Array:
    return np.ones(threads, np.bool_) if bits is np.bool_ else np.full(threads, np.iinfo(bits).max, bits)


DIVERGENT = "is divergent: some threads of the program do it and others do not"

#: Opcode → what makes its `Run`.
OPCODES: dict[str, Callable[[Instruction, Decoder], Run]] = {}
#: The opcodes that a thread runs for itself, also where others have branched ahead.
ALONE: set[str] = set()


def opcode(
    *names: str, alone: bool = False
) -> Callable[[Callable[[Instruction, Decoder], Run]], Callable[[Instruction, Decoder], Run]]:
    """Enter a function into `OPCODES`, and its names into `ALONE`."""

    def enter(decode: Callable[[Instruction, Decoder], Run]) -> Callable[[Instruction, Decoder], Run]:
        for name in names:
            assert name not in OPCODES, name
            OPCODES[name] = decode
        ALONE.update(names if alone else ())
        return decode

    return enter


@dataclass
class _Step:
    run: Run
    guard: int | None
    negated: bool
    instruction: Instruction
    alone: bool


def _shared_bytes(instruction: Instruction) -> int:
    """Bytes of an element that a load from or a store to shared memory moves, at most 4."""
    moves = instruction.opcode.startswith(("ld.shared", "st.shared"))
    return min(4, int(instruction.opcode.rpartition(".")[2][1:]) // 8) if moves else 4


class Kernel:
    """A decoded program, which can be launched."""

    def __init__(self, program: Program) -> None:
        decoder = Decoder(program)
        self.program = program
        self._steps = [self._decoded(x, decoder) for x in program.instructions]
        self._registers = len(decoder.places)
        #: Bytes of the smallest access to shared memory.
        self._unit = min(map(_shared_bytes, program.instructions), default=4)

    @staticmethod
    def _decoded(instruction: Instruction, decoder: Decoder) -> _Step:
        name = instruction.opcode.replace("shared::cta", "shared")  # two names of one thing
        decode = OPCODES.get(name)
        if decode is None:
            raise NotImplementedError(f"the emulator has no {instruction.opcode} ({instruction.source})")
        guard = None if instruction.guard is None else decoder.place(instruction.guard)
        return _Step(decode(instruction, decoder), guard, instruction.negated, instruction, name in ALONE)

    def launch(
        self, grid: tuple[int, int, int], threads: int, shared: int, parameters: dict[str, tuple[str, Any]],
        memory: GlobalMemory, count: Counter[str] | None = None,
    ) -> None:  # fmt: skip
        """Run every program of the grid, one after the other.

        Args:
            shared: bytes.
            parameters: name → (PTX type, value).
            count: how often each opcode has run is added to it.

        Raises:
            FaultError: the message names the kernel, the program, the instruction and the line of its source.
        """
        with np.errstate(all="ignore"):
            for z, y, x in np.ndindex(grid[::-1]):
                block = Block(
                    (x, y, z), grid, threads, self._registers, memory, SharedMemory(shared, self._unit), parameters
                )
                self._run(block, count)

    def _run(self, block: Block, count: Counter[str] | None) -> None:
        place, passed = 0, [0] * len(self._steps)
        while place != END:
            step = self._steps[place]
            passed[place] += 1
            block.place = place
            try:
                mask = None
                if step.guard is not None:
                    mask = block.registers[step.guard]
                    assert mask is not None
                    mask = ~mask if step.negated else mask
                if block.active is not None:
                    block.meet(place)
                if block.active is not None:
                    if not step.alone:
                        raise FaultError(DIVERGENT)
                    mask = block.active if mask is None else mask & block.active
                onward = step.run(block, mask)
            except FaultError as fault:
                name = f"{self.program.name}, program {block.index} of {block.grid}"
                raise FaultError(f"{name}: {step.instruction.opcode} ({step.instruction.source}) {fault}") from None
            place = place + 1 if onward is None else onward
        if count is not None:
            for step, times in zip(self._steps, passed, strict=True):
                count[step.instruction.opcode] += times
