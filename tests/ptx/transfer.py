"""Instructions that move data: parameters, global and shared memory, copies between them; branches and barriers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.ptx.machine import DIVERGENT, END, TYPES, Block, Decoder, Run, opcode
from tests.ptx.memory import Array, FaultError, SharedMemory
from tests.ptx.program import Constant, Instruction, Name, parts_of


def _chosen(mask: Array | None, *of: Array) -> tuple[Array, ...]:
    return of if mask is None else tuple(x[mask] for x in of)


def _all_or_none(block: Block, mask: Array | None) -> bool:
    """Whether all threads do it."""
    if mask is None or mask.all():
        return True
    if mask.any():
        raise FaultError(DIVERGENT)
    return False


@opcode("bra", "bra.uni", alone=True)
def _branch(instruction: Instruction, decoder: Decoder) -> Run:
    target = decoder.label(instruction.operands[0])
    return lambda block, mask: block.branch(target, mask)


@opcode("ret", "exit")
def _return(instruction: Instruction, decoder: Decoder) -> Run:
    return lambda block, mask: END if _all_or_none(block, mask) else None


@opcode("bar.sync", "bar.warp.sync", "fence.proxy.async.shared")
def _order(instruction: Instruction, decoder: Decoder) -> Run:
    barriers = {"bar.sync": SharedMemory.barrier, "bar.warp.sync": SharedMemory.warp_barrier}
    order = barriers.get(instruction.opcode, SharedMemory.proxy_fence)

    def run(block: Block, mask: Array | None) -> None:
        if _all_or_none(block, mask):
            order(block.shared)

    return run


@opcode("ld.param.b32", "ld.param.b64", "ld.param.s32", alone=True)
def _parameter(instruction: Instruction, decoder: Decoder) -> Run:
    to, name = instruction.operands
    assert isinstance(name, Name)
    write, of = decoder.writer(to), instruction.opcode.rpartition(".")[2]
    wide = {1: np.bool_, 16: np.uint16, 32: np.uint32, 64: np.uint64}[to.width]  # type: ignore[union-attr]

    def run(block: Block, mask: Array | None) -> None:
        kind, value = block.parameters[name.name]
        held = np.array(value, np.float32 if kind == "f32" else TYPES[kind.replace("u", "s")])
        read = held.view(TYPES[of]) if held.dtype.itemsize == np.dtype(TYPES[of]).itemsize else held.astype(TYPES[of])
        write(block, read.astype(np.int64).astype(wide) if of == "s32" else read.astype(wide), mask)

    return run


def _spread(
    writes: list[Callable[[Block, Array, Array | None], None]], signed: bool, widths: list[int]
) -> Callable[[Block, Array, Array | None], None]:
    """Write the columns of [threads that read, elements] to registers, which may be wider than an element."""

    def spread(block: Block, found: Array, mask: Array | None) -> None:
        for i, (write, width) in enumerate(zip(writes, widths, strict=True)):
            column = found[:, i]
            if signed:
                column = column.view(f"i{column.itemsize}").astype(np.int64)
            column = column.astype(f"u{width // 8}")
            if mask is not None:
                whole = np.zeros(block.threads, column.dtype)
                whole[mask] = column
                column = whole
            write(block, column, mask)

    return spread


#: How loads and stores name what they move.
ELEMENTS = [f"{vector}{of}" for vector in ("", "v2.", "v4.") for of in ("b16", "b32", "b64", "s32")]


@opcode(
    "ld.shared.b8", *(f"ld.{space}.{element}" for space in ("global", "shared") for element in ELEMENTS), alone=True
)
def _load(instruction: Instruction, decoder: Decoder) -> Run:
    to, at = instruction.operands
    is_global, of = "global" in instruction.opcode, instruction.opcode.rpartition(".")[2]
    address = decoder.address(at, "u64" if is_global else "u32")
    registers, size = parts_of(to), int(of[1:]) // 8
    widths = [register.width for register in registers]  # type: ignore[union-attr]
    spread = _spread([decoder.writer(x) for x in registers], of[0] == "s", widths)

    def run(block: Block, mask: Array | None) -> None:
        if mask is not None and not mask.any():
            spread(block, np.zeros((0, len(registers)), f"u{size}"), mask)
            return
        where, thread = _chosen(mask, address(block), block.thread)
        if is_global:
            found = block.memory.load(where, size, len(registers), block.access(thread))
        else:
            read = block.shared.read(where, size * len(registers), thread)
            found = np.ascontiguousarray(read).view(f"u{size}")
        spread(block, found, mask)

    return run


@opcode(
    "st.shared.b8",
    *(f"st.{space}.{x}" for space in ("global", "shared") for x in ELEMENTS if "s32" not in x),
    alone=True,
)
def _store(instruction: Instruction, decoder: Decoder) -> Run:
    at, of = instruction.operands
    is_global, element = "global" in instruction.opcode, instruction.opcode.rpartition(".")[2]
    address = decoder.address(at, "u64" if is_global else "u32")
    reads = [decoder.reader(x, element) for x in parts_of(of)]

    def run(block: Block, mask: Array | None) -> None:
        if mask is not None and not mask.any():
            return
        values = np.stack([np.broadcast_to(read(block), block.threads) for read in reads], 1)
        where, values, thread = _chosen(mask, address(block), values, block.thread)
        if is_global:
            block.memory.store(where, values, block.access(thread))
        else:
            block.shared.write(where, np.ascontiguousarray(values).view(np.uint8), thread)

    return run


@opcode("cp.async.cg.shared.global", "cp.async.ca.shared.global")
def _copy(instruction: Instruction, decoder: Decoder) -> Run:
    """``[to], [of], bytes, bytes read``: what is not read is 0."""
    to, of, size, *given = instruction.operands
    assert isinstance(size, Constant)
    into, out_of, bytes_ = decoder.address(to, "u32"), decoder.address(of, "u64"), size.bits
    count = decoder.reader(given[0], "u32") if given else lambda block: np.array(bytes_, np.uint32)

    def run(block: Block, mask: Array | None) -> None:
        read = np.broadcast_to(count(block), block.threads)
        where, source, read, thread = _chosen(mask, into(block), out_of(block), read, block.thread)
        if not np.isin(read, (0, bytes_)).all():
            raise NotImplementedError("cp.async of a part of its bytes")
        values, some = np.zeros((len(where), bytes_), np.uint8), read > 0
        if some.any():
            by, element = block.access(thread[some]), min(bytes_, 4)
            found = block.memory.load(source[some], element, bytes_ // element, by)
            values[some] = np.ascontiguousarray(found).view(np.uint8)
        if len(where):
            block.shared.start_copy(where, values, thread)

    return run


@opcode("cp.async.commit_group")
def _commit(instruction: Instruction, decoder: Decoder) -> Run:
    return lambda block, mask: block.shared.commit_copies()


@opcode("cp.async.wait_group", "cp.async.wait_all")
def _wait(instruction: Instruction, decoder: Decoder) -> Run:
    pending = instruction.operands[0] if instruction.operands else Constant(0)
    assert isinstance(pending, Constant)
    return lambda block, mask: block.shared.wait_copies(pending.bits)
