"""Instructions that compute each thread's result from its own registers: a table of functions on arrays."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np

from tests.ptx.machine import Block, Decoder, Run, opcode
from tests.ptx.memory import Array, FaultError
from tests.ptx.program import Instruction, Vector


class Elementwise(NamedTuple):
    """The types of the result and the operands, and the function between them."""

    result: str
    operands: tuple[str, ...]
    function: Callable[..., Array]


# f32. "ftz" takes and gives 0 for subnormal numbers. "approx" is exact here: a GPU's result differs in the last bits.


def _flushed(function: Callable[..., Array]) -> Callable[..., Array]:
    def flush(x: Array) -> Array:
        return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)

    return lambda *xs: flush(function(*map(flush, xs)))


def _larger(x: Array, y: Array) -> Array:
    """The one that is a number, if one is NaN; +0 is larger than -0."""
    both_zero = (x == 0) & (y == 0)
    return np.where(both_zero, x + y, np.fmax(x, y))  # -0 + 0 is 0


def _smaller(x: Array, y: Array) -> Array:
    return -_larger(-x, -y)


def _fma(x: Array, y: Array, z: Array) -> Array:
    """One rounding, to float32: the product of two float32 numbers is exact in float64."""
    return (x.astype(np.float64) * y + z).astype(np.float32)


def _both_numbers(x: Array, y: Array) -> Array:
    return ~(np.isnan(x) | np.isnan(y))


# bf16 and tf32, as bits.


def to_tf32(x: Array) -> Array:
    """The upper 19 bits of float32 bits, to nearest, ties away from zero."""
    rounded: Array = (x + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return rounded


def from_bf16(x: Array) -> Array:
    """bfloat16 bits → float32."""
    wide: Array = x.astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32)


def to_bf16(x: Array) -> Array:
    """float32 → bfloat16 bits, to nearest even."""
    bits = x.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def _pair(low: Array, high: Array) -> Array:
    """Two 16-bit halves → 32 bits."""
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


# Integers.


def _shift(left: bool) -> Callable[[Array, Array], Array]:
    """Shifts of at least the width give 0, or for signed numbers to the right the sign."""

    def shift(x: Array, by: Array) -> Array:
        width = 8 * x.dtype.itemsize
        inside = np.minimum(by, width - 1).astype(x.dtype)
        found = x << inside if left else x >> inside
        return found if not left and x.dtype.kind == "i" else np.where(by < width, found, 0).astype(x.dtype)

    return shift


def _divide(x: Array, y: Array) -> Array:
    """Towards 0. What a division by 0 gives is not specified; a thread that runs one is at fault."""
    wide = np.abs(x.astype(np.int64)) // np.maximum(np.abs(y.astype(np.int64)), 1)
    signed = wide * np.sign(x).astype(np.int64) * np.sign(y).astype(np.int64)
    return np.where(y == 0, -1, signed).astype(x.dtype)


def _remainder(x: Array, y: Array) -> Array:
    return (x - _divide(x, y) * y).astype(x.dtype)


def _extract(x: Array, start: Array, length: Array) -> Array:
    """bfe: a field of bits; a signed one keeps its sign."""
    wide = x.view(np.uint32).astype(np.int64)
    field = (wide >> start.astype(np.int64)) & ((np.int64(1) << length.astype(np.int64)) - 1)
    if x.dtype.kind == "i":
        sign = np.int64(1) << np.maximum(length.astype(np.int64) - 1, 0)
        field = (field ^ sign) - sign
    return field.astype(x.dtype)


def _permute(x: Array, y: Array, which: Array) -> Array:
    """prmt: each of four digits of ``which`` picks one of eight bytes, or with 8 added its sign, eight times."""
    both = x.astype(np.uint64) | (y.astype(np.uint64) << np.uint64(32))
    found = np.zeros(np.broadcast_shapes(x.shape, y.shape, which.shape), np.uint32)
    for i in range(4):
        digit = (which >> np.uint32(4 * i)) & np.uint32(15)
        byte = (both >> (np.uint64(8) * (digit & np.uint32(7)).astype(np.uint64))).astype(np.uint32) & np.uint32(255)
        sign = np.where(byte > 127, np.uint32(255), np.uint32(0))
        found |= np.where(digit > 7, sign, byte) << np.uint32(8 * i)
    return found


def _high(x: Array, y: Array) -> Array:
    """The upper 32 bits of a product."""
    return ((x.astype(np.int64) * y.astype(np.int64)) >> np.int64(32)).astype(x.dtype)


def _wide(x: Array, y: Array) -> Array:
    of = f"{x.dtype.kind}{2 * x.dtype.itemsize}"
    product: Array = x.astype(of) * y.astype(of)
    return product


def _to(of: Any) -> Callable[[Array], Array]:
    return lambda x: x.astype(of)


def _entries() -> dict[str, Elementwise]:
    table: dict[str, Elementwise] = {}

    def same(name: str, of: str, count: int, function: Callable[..., Array], *, full: str = "") -> None:
        """Operands and result of one type."""
        table[full or f"{name}.{of}"] = Elementwise(of, (of,) * count, function)

    for name, function in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)):
        same(name, "f32", 2, function)
    for name, count, function in (
        ("neg", 1, np.negative),
        ("abs", 1, np.abs),
        ("max", 2, _larger),
        ("min", 2, _smaller),
    ):
        same(name, "f32", count, function)
    same("add", "f64", 2, np.add)
    same("div", "f32", 2, np.divide, full="div.full.f32")
    same("fma", "f32", 3, _fma, full="fma.rn.f32")
    same("fma", "f32", 3, _flushed(_fma), full="fma.rn.ftz.f32")
    same("ex2", "f32", 1, np.exp2, full="ex2.approx.f32")
    same("ex2", "f32", 1, _flushed(np.exp2), full="ex2.approx.ftz.f32")

    for of in ("s16", "s32", "s64"):
        for name, count, function in (
            ("add", 2, np.add), ("sub", 2, np.subtract), ("neg", 1, np.negative), ("max", 2, np.maximum),
            ("min", 2, np.minimum),
        ):  # fmt: skip
            same(name, of, count, function)
        same("mul", of, 2, np.multiply, full=f"mul.lo.{of}")
        same("mad", of, 3, lambda x, y, z: x * y + z, full=f"mad.lo.{of}")
    for of in ("u16", "u32", "u64"):
        for name, function in (("max", np.maximum), ("min", np.minimum)):
            same(name, of, 2, function)
    for of in ("s32", "s64"):
        for name, function in (("max", np.maximum), ("min", np.minimum)):  # not below 0
            same(name, of, 2, lambda x, y, f=function: np.maximum(f(x, y), 0), full=f"{name}.relu.{of}")
    for of in ("s32", "u32"):
        same("div", of, 2, _divide)
        same("rem", of, 2, _remainder)
    for of in ("s16", "s32", "s64", "u16", "u32", "u64"):
        table[f"shr.{of}"] = Elementwise(of, (of, "u32"), _shift(left=False))
    for of in ("b16", "b32", "b64"):
        table[f"shl.{of}"] = Elementwise(of, (of, "u32"), _shift(left=True))
        for name, function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
            same(name, of, 2, function)
        same("not", of, 1, np.invert)
    same("prmt", "b32", 3, _permute)
    for name, function in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
        same(name, "pred", 2, function)
    same("not", "pred", 1, np.logical_not)
    for of, wide in (("s16", "s32"), ("u16", "u32"), ("s32", "s64"), ("u32", "u64")):
        table[f"mul.wide.{of}"] = Elementwise(wide, (of, of), _wide)
        table[f"mad.wide.{of}"] = Elementwise(wide, (of, of, wide), lambda x, y, z: _wide(x, y) + z)
    for of in ("s32", "u32"):
        same("mul", of, 2, _high, full=f"mul.hi.{of}")
        table[f"bfe.{of}"] = Elementwise(of, (of, "u32", "u32"), _extract)

    signed = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    equal = {"eq": np.equal, "ne": np.not_equal}
    for types, comparisons in (
        (("s16", "s32", "s64", "u16", "u32", "u64"), signed),
        (("b16", "b32", "b64"), equal),
        (("f32",), {**signed, "eq": np.equal, "neu": np.not_equal, "num": _both_numbers}),  # neu: also if one is NaN
    ):
        for of in types:
            for name, function in comparisons.items():
                table[f"setp.{name}.{of}"] = Elementwise("pred", (of, of), function)
    for of in ("b16", "b32", "b64", "f32", "f64"):
        table[f"selp.{of}"] = Elementwise(of, (of, of, "pred"), lambda x, y, which: np.where(which, x, y))
    for of in ("b16", "b32", "b64", "u16", "u32", "u64", "pred"):
        same("mov", of, 1, lambda x: x)

    for kind, numpys in (("u", "u"), ("s", "i")):
        for to, of in permutations((16, 32, 64), 2):
            table[f"cvt.{kind}{to}.{kind}{of}"] = Elementwise(
                f"{kind}{to}", (f"{kind}{of}",), _to(np.dtype(f"{numpys}{to // 8}"))
            )
    for of in ("s32", "u32", "s64"):
        table[f"cvt.rn.f32.{of}"] = Elementwise("f32", (of,), _to(np.float32))
    table["cvt.f32.f16"] = Elementwise("f32", ("f16",), _to(np.float32))
    table["cvt.rn.f16.f32"] = Elementwise("f16", ("f32",), _to(np.float16))
    table["cvt.f32.bf16"] = Elementwise("f32", ("b16",), from_bf16)
    table["cvt.rn.bf16.f32"] = Elementwise("b16", ("f32",), to_bf16)
    table["cvt.rna.tf32.f32"] = Elementwise("b32", ("b32",), to_tf32)
    # The first operand of a pair is the upper half.
    table["cvt.rn.bf16x2.f32"] = Elementwise("b32", ("f32", "f32"), lambda x, y: _pair(to_bf16(y), to_bf16(x)))
    table["cvt.rn.f16x2.f32"] = Elementwise(
        "b32", ("f32", "f32"), lambda x, y: _pair(*(z.astype(np.float16).view(np.uint16) for z in (y, x)))
    )
    return table


#: Opcode → what it computes.
ELEMENTWISE = _entries()


def _decode(instruction: Instruction, decoder: Decoder) -> Run:
    result, *operands = instruction.operands
    entry = ELEMENTWISE[instruction.opcode]
    write, function = decoder.writer(result), entry.function
    reads = [decoder.reader(x, of) for x, of in zip(operands, entry.operands, strict=True)]

    def run(block: Block, mask: Array | None) -> None:
        write(block, function(*[read(block) for read in reads]), mask)

    def run_division(block: Block, mask: Array | None) -> None:
        none = reads[1](block) == 0
        if (none if mask is None else none & mask).any():
            raise FaultError("divides by 0")
        run(block, mask)

    return run_division if instruction.opcode.startswith(("div.s", "div.u", "rem.")) else run


def _decode_move(instruction: Instruction, decoder: Decoder) -> Run:
    """mov between a register and the parts of a vector, which has the lowest bits first."""
    to, of = instruction.operands
    width = int(instruction.opcode.rpartition(".b")[2])
    if isinstance(of, Vector):
        part = width // len(of.parts)
        reads, write = [decoder.reader(x, f"b{part}") for x in of.parts], decoder.writer(to)

        def join(block: Block, mask: Array | None) -> None:
            parts = np.stack(np.broadcast_arrays(*[read(block) for read in reads], block.thread)[:-1], 1)
            write(block, np.ascontiguousarray(parts).view(f"u{width // 8}")[:, 0], mask)

        return join
    if isinstance(to, Vector):
        part = width // len(to.parts)
        read, writes = decoder.reader(of, f"b{width}"), [decoder.writer(x) for x in to.parts]

        def divide(block: Block, mask: Array | None) -> None:
            parts = np.broadcast_to(read(block), block.threads).copy().view(f"u{part // 8}").reshape(block.threads, -1)
            for i, write in enumerate(writes):
                write(block, parts[:, i].copy(), mask)

        return divide
    return _decode(instruction, decoder)


opcode(*(name for name in ELEMENTWISE if name not in ("mov.b32", "mov.b64")), alone=True)(_decode)
opcode("mov.b32", "mov.b64", alone=True)(_decode_move)
