"""Instructions of a warp: shuffles, reductions, ldmatrix and mma, whose fragments lie in the registers of 32 threads.

The layouts of the fragments are those of the PTX ISA, "Warp-level matrix instructions". A product is summed in float64
and rounded once to float32; a GPU keeps fewer bits while it sums.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.arithmetic import from_bf16
from tests.ptx.machine import Block, Decoder, Run, opcode
from tests.ptx.memory import Array, FaultError, of_warp
from tests.ptx.program import Instruction, Operand, parts_of


def _whole(block: Block, mask: Array | None) -> None:
    """A warp's instruction is for all of its threads."""
    if mask is not None and not mask.all():
        raise FaultError("is run by a part of the threads")


@opcode("shfl.sync.bfly.b32", "shfl.sync.idx.b32", "shfl.sync.up.b32")
def _shuffle(instruction: Instruction, decoder: Decoder) -> Run:
    to, *operands = instruction.operands
    read, by, clamp, _ = [decoder.reader(x, "u32") for x in operands]
    write, mode = decoder.writer(to), instruction.opcode.split(".")[2]

    def run(block: Block, mask: Array | None) -> None:
        _whole(block, mask)
        segment, limit = (clamp(block) >> np.uint32(8)) & np.uint32(31), clamp(block) & np.uint32(31)
        lane, b = block.lane.astype(np.uint32), by(block) & np.uint32(31)
        last = ((lane & segment) | (limit & ~segment)).astype(np.int64)
        if mode == "up":
            of = lane.astype(np.int64) - b
        else:
            of = (lane ^ b if mode == "bfly" else (lane & segment) | (b & ~segment)).astype(np.int64)
        of = np.where(of >= last if mode == "up" else of <= last, of, lane)
        value = np.broadcast_to(read(block), block.threads)
        write(block, value[block.warp * 32 + of], None)

    return run


@opcode("redux.sync.max.s32", "redux.sync.min.s32", "redux.sync.add.s32")
def _reduce(instruction: Instruction, decoder: Decoder) -> Run:
    to, of, _ = instruction.operands
    read, write = decoder.reader(of, "s32"), decoder.writer(to)
    function = {"max": np.max, "min": np.min, "add": np.sum}[instruction.opcode.split(".")[2]]

    def run(block: Block, mask: Array | None) -> None:
        _whole(block, mask)
        value = np.broadcast_to(read(block), block.threads).reshape(-1, 32)
        write(block, np.repeat(function(value, 1).astype(np.int32), 32), None)

    return run


_MATRICES = [f"m8n8.{count}.{trans}shared.b16" for count in ("x1", "x2", "x4") for trans in ("", "trans.")]


def _rows(at: Operand, count: int, decoder: Decoder) -> Callable[[Block, Array | None], tuple[Array, Array]]:
    """The addresses of the rows of ``count`` matrices of 8 × 8 halves, and who touches them.

    Thread 8 i + r gives the address of row r of matrix i. Not that thread, but its whole warp touches the row.
    """
    address = decoder.address(at, "u32")

    def rows(block: Block, mask: Array | None) -> tuple[Array, Array]:
        _whole(block, mask)
        giving = block.lane < 8 * count
        return address(block)[giving], of_warp(block.warp[giving])

    return rows


@opcode(*(f"ldmatrix.sync.aligned.{x}" for x in _MATRICES))
def _load_matrices(instruction: Instruction, decoder: Decoder) -> Run:
    to, at = instruction.operands
    writes, trans = [decoder.writer(x) for x in parts_of(to)], "trans" in instruction.opcode
    rows = _rows(at, len(writes), decoder)

    def run(block: Block, mask: Array | None) -> None:
        address, warp = rows(block, mask)
        read = block.shared.read(address, 16, warp)
        matrices = np.ascontiguousarray(read).view(np.uint16).reshape(-1, len(writes), 8, 8)
        if trans:
            matrices = matrices.swapaxes(2, 3)
        pairs = np.ascontiguousarray(matrices).view(np.uint32)  # [warps,matrices,8,4], a pair for each thread
        for i, write in enumerate(writes):
            write(block, pairs[:, i].reshape(-1), None)

    return run


@opcode(*(f"stmatrix.sync.aligned.{x}" for x in _MATRICES))
def _store_matrices(instruction: Instruction, decoder: Decoder) -> Run:
    """The reverse of ldmatrix."""
    at, of = instruction.operands
    reads, trans = [decoder.reader(x, "b32") for x in parts_of(of)], "trans" in instruction.opcode
    rows = _rows(at, len(reads), decoder)

    def run(block: Block, mask: Array | None) -> None:
        address, warp = rows(block, mask)
        pairs = stacked(reads, block).reshape(len(reads), -1, 8, 4).swapaxes(0, 1)
        matrices = np.ascontiguousarray(pairs).view(np.uint16)  # [warps,matrices,8,8]
        if trans:
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
        block.shared.write(address, matrices.view(np.uint8).reshape(-1, 16), warp)

    return run


@functools.cache
def fragment(kind: str, warps: int, columns: int = 8) -> Array:
    """Where each element of a matrix lies in registers [registers,threads] or, for 16 bits, [registers,threads,2].

    ``a``: [warps,16,16] of 16 bits; ``b``: [warps,16,8] of 16 bits; ``a32``: [warps,16,8] and ``b32``: [warps,8,8] of
    32 bits; ``c``: [warps,16,columns] of 32 bits.
    """
    rows, width = {"a": (16, 16), "b": (16, 8), "a32": (16, 8), "b32": (8, 8), "c": (16, columns)}[kind]
    row, column = np.arange(rows)[:, None], np.arange(width)[None]
    warp = 32 * np.arange(warps)[:, None, None]
    threads = 32 * warps
    if kind == "a":
        register, thread = row // 8 + 2 * (column // 8), row % 8 * 4 + column % 8 // 2
        return ((register * threads + warp + thread) * 2 + column % 2).astype(np.int64)
    if kind == "b":
        register, thread = row // 8, column * 4 + row % 8 // 2
        return ((register * threads + warp + thread) * 2 + row % 2).astype(np.int64)
    if kind == "a32":
        register, thread = row // 8 + 2 * (column // 4), row % 8 * 4 + column % 4
    elif kind == "b32":
        register, thread = row // 4, column * 4 + row % 4
    else:
        register, thread = column % 2 + 2 * (row // 8) + 4 * (column // 8), row % 8 * 4 + column % 8 // 2
    return (register * threads + warp + thread).astype(np.int64)


def stacked(reads: list[Any], block: Block) -> Array:
    """Registers → [registers,threads]."""
    return np.array([x if x.ndim else np.full(block.threads, x) for x in (read(block) for read in reads)])


def numbers(bits: Array, of: str) -> Array:
    """The bits of ``bf16``, ``f16``, ``tf32`` or ``f32`` as float32. tf32 reads the upper 19 bits."""
    if of == "bf16":
        return from_bf16(bits)
    if of == "f16":
        return bits.view(np.float16).astype(np.float32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32) if of == "tf32" else bits.view(np.float32)


@opcode("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")  # fmt: skip
def _multiply(instruction: Instruction, decoder: Decoder) -> Run:
    of = instruction.opcode.split(".")[-2]
    narrow = of != "tf32"
    d, *operands = instruction.operands
    writes = [decoder.writer(x) for x in parts_of(d)]
    reads = [[decoder.reader(x, "b32") for x in parts_of(operand)] for operand in operands]

    def run(block: Block, mask: Array | None) -> None:
        _whole(block, mask)
        warps = block.threads // 32
        a, b, c = (stacked(x, block) for x in reads)
        if narrow:
            a, b = (x.view(np.uint16) for x in (a, b))
        suffix = "" if narrow else "32"
        a, b = (numbers(x.reshape(-1)[fragment(kind + suffix, warps)], of) for x, kind in ((a, "a"), (b, "b")))
        place = fragment("c", warps)
        found = (np.matmul(a, b, dtype=np.float64) + c.view(np.float32).reshape(-1)[place]).astype(np.float32)
        out = np.empty(c.shape, np.float32)
        out.reshape(-1)[place] = found
        for write, column in zip(writes, out, strict=True):
            write(block, column, None)

    return run
