"""wgmma: products of four warps on sm_90, whose operands are read from shared memory while the threads go on.

The layouts, the descriptors and the rules of order are those of the PTX ISA, "Asynchronous warpgroup level matrix
instructions". A product is computed at once, but its results reach the registers when it is waited for, and what it
reads is guarded until then.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from tests.ptx.machine import Block, Decoder, Run, opcode
from tests.ptx.matrix import fragment, numbers, stacked
from tests.ptx.memory import Array, FaultError
from tests.ptx.program import Constant, Instruction, Vector, parts_of


@dataclass
class _Group:
    """The products between two commits."""

    units: list[Array] = field(default_factory=list)
    #: (place, array) of registers with A, which must not change.
    operands: list[tuple[int, Array]] = field(default_factory=list)
    results: set[int] = field(default_factory=set)


@dataclass
class _Products:
    """The state of wgmma in one program."""

    #: All registers at the last wgmma.fence; none before the first.
    fenced: list[Array | None] | None = None
    #: Place → results that are not in the register yet.
    results: dict[int, Array] = field(default_factory=dict)
    groups: list[_Group] = field(default_factory=lambda: [_Group()])


def _state(block: Block) -> _Products:
    if block.products is None:
        block.products = _Products()
    products: _Products = block.products
    return products


@opcode("wgmma.fence.sync.aligned")
def _fence(instruction: Instruction, decoder: Decoder) -> Run:
    def run(block: Block, mask: Array | None) -> None:
        _state(block).fenced = [*block.registers]

    return run


@opcode("wgmma.commit_group.sync.aligned")
def _commit(instruction: Instruction, decoder: Decoder) -> Run:
    return lambda block, mask: _state(block).groups.append(_Group())


@opcode("wgmma.wait_group.sync.aligned")
def _wait(instruction: Instruction, decoder: Decoder) -> Run:
    (pending,) = instruction.operands
    assert isinstance(pending, Constant)

    def run(block: Block, mask: Array | None) -> None:
        products = _state(block)
        while len(products.groups) - 1 > pending.bits:
            group = products.groups.pop(0)
            for units in group.units:
                block.shared.end_product(units)
            if any(block.registers[place] is not array for place, array in group.operands):
                raise FaultError("waits for a wgmma that reads registers which have been written meanwhile")
            later = set().union(*(x.results for x in products.groups))
            for place in group.results - later:
                if block.registers[place] is not None:
                    raise FaultError("waits for a wgmma whose results' registers have been written meanwhile")
                block.registers[place] = products.results.pop(place)

    return run


#: Swizzle mode of a descriptor → bytes of a row of its pattern, 8 rows long.
_ROWS = {0: 16, 1: 128, 2: 64, 3: 32}


def _addresses(descriptor: int, rows: int, columns: int, size: int, transposed: bool) -> Array:
    """Shared addresses of the elements of an operand [rows,columns], with ``size`` bytes each.

    ``columns`` are the ones that the product sums over. They are adjacent in memory unless ``transposed``.
    """
    start, leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    if descriptor >> 49 & 7:
        raise NotImplementedError("a base offset in a descriptor of wgmma")
    mode = descriptor >> 62
    width = _ROWS[mode] // size  # elements in a row of the pattern
    row, column = np.arange(rows)[:, None], np.arange(columns)[None]
    along, across = (row, column) if transposed else (column, row)  # along a row of memory, and across rows
    if mode == 0 and not transposed:
        offset = along // width * leading + across // 8 * stride
    elif mode == 0:
        offset = along // width * stride + across // 8 * leading
    else:  # without a transpose, one product's columns lie in one row of the pattern
        offset = along // width * (leading if transposed else 0) + across // 8 * stride
    address = start + offset + across % 8 * _ROWS[mode] + along % width * size
    # The 16-byte parts of a row are exchanged by the number of the 128-byte line.
    found: Array = address ^ (address >> 3 & {0: 0, 1: 0x70, 2: 0x30, 3: 0x10}[mode])
    return found


_SHAPE = re.compile(r"m64n(\d+)k(\d+)\.f32\.(\w+)")


def _product(instruction: Instruction, decoder: Decoder) -> Run:
    shape = _SHAPE.search(instruction.opcode)
    assert shape is not None
    n, k, of = int(shape[1]), int(shape[2]), shape[3]
    size = 4 if of == "tf32" else 2
    d, a, b, adds, scale_a, scale_b, *transposed = instruction.operands
    if {scale_a, scale_b} != {Constant(1)}:
        raise NotImplementedError("a negated operand of wgmma")
    results = [decoder.place(x) for x in parts_of(d)]
    names = [decoder.place(x) for x in a.parts] if isinstance(a, Vector) else []
    a_bits = [decoder.reader(x, "b32") for x in a.parts] if isinstance(a, Vector) else []
    a_descriptor = None if isinstance(a, Vector) else decoder.reader(a, "u64")
    b_descriptor, add = decoder.reader(b, "u64"), decoder.reader(adds, "pred")
    *_, b_transposed = [False, *(x == Constant(1) for x in transposed)]
    a_transposed = len(transposed) == 2 and transposed[0] == Constant(1)

    def operand(block: Block, group: _Group, descriptor: Array, rows: int, trans: bool) -> Array:
        """[warpgroups,rows,k]: the descriptor is the same for all threads of a warpgroup."""
        each = np.broadcast_to(descriptor, block.threads).reshape(-1, 128)
        if (each != each[:, :1]).any():
            raise FaultError("has descriptors that differ within a warpgroup")
        address = np.stack([_addresses(int(x), rows, k, size, trans) for x in each[:, 0]])
        group.units.append(block.shared.start_product(address))
        bits = block.shared.data[address[..., None] + np.arange(size)]
        return numbers(np.ascontiguousarray(bits).view(f"u{size}")[..., 0], of)

    def run(block: Block, mask: Array | None) -> None:
        products = _state(block)
        if products.fenced is None:
            raise FaultError("has no wgmma.fence before it")
        group, groups = products.groups[-1], block.threads // 128
        for place in names:
            if block.registers[place] is not products.fenced[place]:
                raise FaultError("reads registers that have been written since the last wgmma.fence")
        group.operands += [(place, array) for place in names if (array := block.registers[place]) is not None]
        if a_descriptor is None:
            bits = stacked(a_bits, block)
            layout = fragment("a" if size == 2 else "a32", 4 * groups)
            left = numbers((bits.view(np.uint16) if size == 2 else bits).reshape(-1)[layout], of).reshape(groups, 64, k)
        else:
            left = operand(block, group, a_descriptor(block), 64, a_transposed)
        right = operand(block, group, b_descriptor(block), n, b_transposed)
        found = np.matmul(left, right.swapaxes(1, 2), dtype=np.float64)
        place_of = fragment("c", 4 * groups, n).reshape(groups, 64, n)
        if bool(np.all(add(block))):
            held = np.stack([_accumulator(block, products, place) for place in results])
            found = found + held.view(np.float32).reshape(-1)[place_of]
        out = np.empty((len(results), block.threads), np.float32)
        out.reshape(-1)[place_of] = found.astype(np.float32)
        for place, column in zip(results, out.view(np.uint32), strict=True):
            block.registers[place] = None
            products.results[place] = column
        group.results |= {*results}

    return run


def _accumulator(block: Block, products: _Products, place: int) -> Array:
    """A register to which the product is added: one that an earlier product is writing, or one before the fence."""
    if place in products.results:
        if block.registers[place] is not None:
            raise FaultError("adds to registers that have been written while a wgmma was writing them")
        return products.results[place]
    value = block.registers[place]
    if value is None or products.fenced is None or value is not products.fenced[place]:
        raise FaultError("adds to registers that have been written since the last wgmma.fence")
    return value


#: Every width that the instruction has.
_TYPES = (("16", "bf16.bf16"), ("16", "f16.f16"), ("8", "tf32.tf32"))
opcode(*(f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{of}" for n in range(8, 257, 8) for k, of in _TYPES))(_product)
