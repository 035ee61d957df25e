"""Each instruction of the table, run in a program, against the definition of the PTX ISA in Python's own numbers."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from tests.ptx.arithmetic import ELEMENTWISE
from tests.ptx.assembled import bits, each, run

NAN = float("nan")


def width_of(of: str) -> int:
    return 1 if of == "pred" else int(of.strip("bfsu"))


def integer(x: int, of: str) -> int:
    """The number that the bits are, as the type has it."""
    width = width_of(of)
    x &= (1 << width) - 1
    return x - (1 << width) if of[0] == "s" and x >> (width - 1) else x


def single(x: float) -> float:
    """The nearest float32."""
    try:
        found: float = struct.unpack("f", struct.pack("f", x))[0]
    except OverflowError:
        found = math.copysign(math.inf, x)
    return found


def as_float(x: int, of: str = "f32") -> float:
    found: float = struct.unpack({"f64": "d", "f32": "f", "f16": "e"}[of], x.to_bytes(width_of(of) // 8, "little"))[0]
    return found


def float_bits(x: float, of: str = "f32") -> int:
    if of == "bf16":
        return nearest(float_bits(single(x)), 16)
    try:
        return int.from_bytes(struct.pack({"f64": "d", "f32": "f", "f16": "e"}[of], x), "little")
    except OverflowError:
        return {"f32": 0x7F800000, "f16": 0x7C00}[of] | (1 << (width_of(of) - 1) if x < 0 else 0)


def nearest(x: int, drop: int) -> int:
    """Bits without the lowest ``drop`` ones, rounded to nearest, ties to even."""
    if (x & 0x7FFFFFFF) > 0x7F800000:
        return 0x7FFF
    high, low, half = x >> drop, x & ((1 << drop) - 1), 1 << (drop - 1)
    return high + (low > half or (low == half and high & 1))


def flushed(x: float) -> float:
    return math.copysign(0.0, x) if abs(x) < 2.0**-126 else x


def power(x: float) -> float:
    return math.inf if x >= 128 else 2.0**x


def quotient(x: int, y: int) -> int:
    """Towards 0."""
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


def ratio(x: float, y: float) -> float:
    if y == 0:
        return NAN if x == 0 or math.isnan(x) else math.copysign(math.inf, x) * math.copysign(1, y)
    return x / y


def other_than_nan(choose: Callable[..., float]) -> Callable[[float, float], float]:
    """The larger or smaller number; NaN only if both are, and +0 is larger than -0."""

    def chosen(x: float, y: float) -> float:
        numbers = [z for z in (x, y) if not math.isnan(z)]
        return choose(numbers, key=lambda z: (z, math.copysign(1, z))) if numbers else NAN

    return chosen


INTEGERS: dict[str, Callable[..., int]] = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "neg": lambda x: -x, "max": max, "min": min,
    "div": quotient, "rem": lambda x, y: x - quotient(x, y) * y, "mul": lambda x, y: x * y,
    "mad": lambda x, y, z: x * y + z, "and": lambda x, y: x & y, "or": lambda x, y: x | y, "xor": lambda x, y: x ^ y,
    "not": lambda x: ~x, "mov": lambda x: x,
}  # fmt: skip
FLOATS: dict[str, Callable[..., float]] = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "neg": lambda x: -x, "abs": abs,
    "max": other_than_nan(max), "min": other_than_nan(min), "div": ratio, "fma": lambda x, y, z: x * y + z,
    "ex2": power,
}  # fmt: skip
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "lt": lambda x, y: x < y, "le": lambda x, y: x <= y, "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y,
    "eq": lambda x, y: x == y, "ne": lambda x, y: x != y, "neu": lambda x, y: x != y,
    "num": lambda x, y: not (math.isnan(x) or math.isnan(y)),
}  # fmt: skip


def expected(opcode: str, types: tuple[str, ...], xs: tuple[int, ...]) -> int:
    """The bits of the result; of a float, of the nearest float32."""
    name, *rest = opcode.split(".")
    of = rest[-1]
    if name == "setp":
        x, y = (as_float(v) if of == "f32" else integer(v, of) for v in xs)
        return COMPARISONS[rest[0]](x, y)
    if name == "selp":
        return xs[0] if xs[2] & 1 else xs[1]
    if name == "cvt":
        return converted(rest, xs)
    if of == "f64":
        return float_bits(FLOATS[name](*(as_float(x, of) for x in xs)), of)
    if of == "f32":
        ftz = flushed if "ftz" in rest else lambda x: x
        return float_bits(ftz(single(FLOATS[name](*(ftz(as_float(x)) for x in xs)))))
    given = [integer(x, t) for x, t in zip(xs, types, strict=True)]
    if name in ("shl", "shr"):
        return given[0] << given[1] if name == "shl" else given[0] >> given[1]
    if name == "prmt":
        bytes_ = [*given[0].to_bytes(4, "little"), *given[1].to_bytes(4, "little")]
        digits = [given[2] >> 4 * i & 15 for i in range(4)]
        return int.from_bytes([(255 if bytes_[d & 7] > 127 else 0) if d > 7 else bytes_[d] for d in digits], "little")
    if name == "bfe":
        field = (given[0] >> given[1]) & ((1 << given[2]) - 1)
        return integer(field, f"s{given[2]}") if of[0] == "s" and given[2] else field
    found = INTEGERS[name](*given)
    if of == "pred":
        return found & 1
    if "relu" in rest:
        return max(found, 0)
    return found >> 32 if "hi" in rest else found


def converted(rest: list[str], xs: tuple[int, ...]) -> int:
    to, of = rest[-2:]
    if to == "tf32":
        return (xs[0] + 0x1000) & 0xFFFFE000
    if to in ("bf16x2", "f16x2"):
        low, high = (float_bits(as_float(x), to[:-2]) for x in (xs[1], xs[0]))
        return low | high << 16
    if of == "bf16":
        return xs[0] << 16
    if of in ("f16", "f32"):
        return float_bits(as_float(xs[0], of), to)
    return float_bits(single(integer(xs[0], of))) if to == "f32" else integer(xs[0], of)


def values(of: str, place: int, opcode: str) -> list[int]:
    """Bits of a type that are worth a try, for the operand at ``place``."""
    name = opcode.partition(".")[0]
    if of == "pred":
        return [0, 1]
    if name in ("shl", "shr") and place == 1:
        return [0, 1, 5, 15, 16, 31, 32, 63, 64, 200]
    if name == "bfe" and place:
        return [0, 1, 3, 15, 28] if place == 1 else [1, 3, 4]
    width, rng = width_of(of), random.Random(place)
    if of[0] == "f" or "f32" in opcode.rpartition(".")[2]:
        numbers = (
            0.0,
            -0.0,
            1.0,
            -1.0,
            1.5,
            3e-45,
            1e-39,
            -2e-38,
            0.1,
            1e30,
            -3e38,
            math.inf,
            -math.inf,
            NAN,
            88.5,
            -130.0,
        )
        some = [float_bits(x, of if of in ("f16", "f64") else "f32") for x in numbers]
        return [x for x in some if name != "ex2" or as_float(x) == as_float(x)]
    edges = [0, 1, 2, 7, -1, -2, 1 << (width - 1), (1 << (width - 1)) - 1]
    return [*edges, *(rng.getrandbits(width) for _ in range(4))]


def cases(opcode: str) -> list[tuple[int, ...]]:
    operands = ELEMENTWISE[opcode].operands
    every = [*product(*(values(of, i, opcode) for i, of in enumerate(operands)))]
    if opcode.startswith(("div.s", "div.u", "rem.")):  # division by 0, and of the least number by -1, is not specified
        least = 1 << (width_of(operands[0]) - 1)
        every = [(x, y) for x, y in every if y and not (x == least and y == -1 and "s" in operands[0])]
    return random.Random(0).sample(every, min(256, len(every)))


_LOADS = {16: ("b16", "%rs"), 32: ("b32", "%r"), 64: ("b64", "%rd")}


@pytest.mark.parametrize("opcode", ELEMENTWISE)
def test_as_defined(opcode: str) -> None:
    entry, given = ELEMENTWISE[opcode], cases(opcode)
    lines, names, tensors = [], [], []
    for i, of in enumerate(entry.operands):
        width = 32 if of == "pred" else width_of(of)
        kind, register = _LOADS[width]
        name = f"{register}{i}"
        lines += [each(width // 8, i, f"%rd{10 + i}"), f"ld.global.{kind} {name}, [%rd{10 + i}];"]
        tensors.append(bits([x[i] for x in given], width))
        if of == "pred":
            lines.append(f"setp.ne.b32 %p{i}, {name}, 0;")
            name = f"%p{i}"
        names.append(name)
    width = 32 if entry.result == "pred" else width_of(entry.result)
    kind, register = _LOADS[width]
    result = "%p9" if entry.result == "pred" else f"{register}9"
    lines += [f"{opcode} {result}, {', '.join(names)};", each(width // 8, len(names), "%rd30")]
    if entry.result == "pred":
        lines.append("selp.b32 %r9, 1, 0, %p9;")
    lines.append(f"st.global.{kind} [%rd30], {register}9;")
    out = bits([0] * len(given), width)
    run("\n".join(lines), *tensors, out, threads=len(given))
    for xs, got in zip(given, out.tolist(), strict=True):
        wanted = expected(opcode, entry.operands, xs) & ((1 << width) - 1)
        if entry.result.startswith("f") and equal(got & ((1 << width) - 1), wanted, entry.result, "ex2" in opcode):
            continue
        assert got & ((1 << width) - 1) == wanted, (opcode, [hex(x) for x in xs], hex(got), hex(wanted))


def equal(got: int, wanted: int, of: str, approximate: bool) -> bool:
    x, y = as_float(got, of), as_float(wanted, of)
    if math.isnan(x) or math.isnan(y):
        return math.isnan(x) and math.isnan(y)
    return abs(x - y) <= 2e-7 * abs(y) if approximate else got == wanted


def test_moves_join_and_divide_registers() -> None:
    """The first register of a vector has the lowest bits."""
    given, out = bits([0x44332211, 0x88776655], 32), bits([0] * 4, 32)
    run(
        """
        ld.global.v2.b32 {%r1, %r2}, [%rd100];
        mov.b64 %rd1, {%r1, %r2};
        mov.b32 {%rs1, %rs2}, %r1;
        mov.b32 %r3, {%rs2, %rs1};
        mov.b64 {%r4, %r5}, %rd1;
        st.global.v4.b32 [%rd101], {%r3, %r4, %r5, %r2};
        """,
        given, out, threads=1,
    )  # fmt: skip
    assert out.tolist() == bits([0x22114433, 0x44332211, 0x88776655, 0x88776655], 32).tolist()


def test_a_guard_leaves_the_other_threads_as_they_were() -> None:
    out = bits([0] * 32, 32)
    run(
        f"""
        mov.b32 %r1, 7;
        setp.lt.u32 %p1, %r100, 5;
        @%p1 add.s32 %r1, %r1, 1;
        @!%p1 sub.s32 %r1, %r1, 1;
        {each(4, 0, "%rd1")}
        st.global.b32 [%rd1], %r1;
        """,
        out,
    )
    assert out.tolist() == [8] * 5 + [6] * 27
