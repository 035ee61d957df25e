"""ldmatrix, stmatrix, mma and wgmma against products by hand, with the ISA's layouts written out by element."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ptx.assembled import each, run
from tests.ptx.machine import OPCODES

HALVES = {"bf16": torch.bfloat16, "f16": torch.float16}


def vector(prefix: str, count: int, first: int = 0) -> str:
    return "{" + ", ".join(f"%{prefix}{first + i}" for i in range(count)) + "}"


@pytest.mark.parametrize("trans", ["", "trans."])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("loads", [True, False])
def test_matrices_of_a_warp(count: int, trans: str, loads: bool) -> None:
    """Thread t of a warp holds elements 2 (t % 4) and the next of row t / 4 of each matrix, or of its transpose."""
    rows = torch.randint(0, 30000, (2, count, 8, 8), dtype=torch.int16)  # in shared memory: [warp,matrix,row,column]
    held = torch.empty(2, 32, count, 2, dtype=torch.int16)  # in registers: [warp,thread,register,half]
    for warp in range(2):
        for thread in range(32):
            for i in range(count):
                for half in range(2):
                    at = (thread // 4, thread % 4 * 2 + half)
                    held[warp, thread, i, half] = rows[warp, i, at[1], at[0]] if trans else rows[warp, i, *at]
    given, out = (rows, torch.zeros_like(held)) if loads else (held, torch.zeros_like(rows))
    size, registers = count * 16, vector("r", count, 10) if count > 1 else "%r10"
    moved = f"m8n8.x{count}.{trans}shared.b16"
    # A thread's row of `rows` lies at its number, for as many threads as there are rows.
    address = f"""
        and.b32 %r1, %r100, 31;
        shr.u32 %r2, %r100, 5;
        mul.lo.s32 %r3, %r2, {128 * count};
        mad.lo.s32 %r4, %r1, 16, %r3;
        setp.lt.u32 %p1, %r1, {8 * count};
        selp.b32 %r4, %r4, 0, %p1;
        cvt.u64.u32 %rd1, %r4;
        add.s64 %rd2, %rd{100 if loads else 101}, %rd1;
    """
    kind = {1: "b32", 2: "v2.b32", 4: "v4.b32"}[count]
    if loads:
        body = f"""{address}
        @%p1 ld.global.v4.b32 {{%r5, %r6, %r7, %r8}}, [%rd2];
        @%p1 st.shared.v4.b32 [%r4], {{%r5, %r6, %r7, %r8}};
        bar.warp.sync -1;
        ldmatrix.sync.aligned.{moved} {registers}, [%r4];
        {each(size // 4, 1, "%rd3")}
        st.global.{kind} [%rd3], {registers};"""
    else:
        body = f"""{address}
        {each(size // 4, 0, "%rd3")}
        ld.global.{kind} {registers}, [%rd3];
        stmatrix.sync.aligned.{moved} [%r4], {registers};
        bar.sync 0;
        @%p1 ld.shared.v4.b32 {{%r5, %r6, %r7, %r8}}, [%r4];
        @%p1 st.global.v4.b32 [%rd2], {{%r5, %r6, %r7, %r8}};"""
    run(body, given, out, threads=64, shared=256 * count)
    assert torch.equal(out, held if loads else rows)


def fragments(x: Tensor, place: str) -> Tensor:
    """A matrix [rows,columns] as the registers of 32 threads hold it, [32,registers,numbers in a register]."""
    columns = x.shape[1]
    count, halves = {"a": (4, 2), "b": (2, 2), "a32": (4, 1), "b32": (2, 1), "c": (columns // 2, 1)}[place]
    held = x.new_zeros(32, count, halves)
    for thread in range(32):
        group, member = thread // 4, thread % 4
        for i in range(count):
            for half in range(halves):
                at = {
                    "a": (group + 8 * (i % 2), 2 * member + half + 8 * (i // 2)),
                    "b": (2 * member + half + 8 * i, group),
                    "a32": (group + 8 * (i % 2), member + 4 * (i // 2)),
                    "b32": (member + 4 * i, group),
                    "c": (group + 8 * (i // 2 % 2), 2 * member + i % 2 + 8 * (i // 4)),
                }[place]
                held[thread, i, half] = x[at]
    return held


def of_type(x: Tensor, of: str) -> Tensor:
    """Numbers that the type represents exactly."""
    if of == "tf32":
        return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)
    return x.to(HALVES[of])


@pytest.mark.parametrize("of", ["bf16", "f16", "tf32"])
def test_products_of_a_warp(of: str) -> None:
    k = 8 if of == "tf32" else 16
    a, b = of_type(torch.randn(16, k), of), of_type(torch.randn(k, 8), of)
    c, out = torch.randn(16, 8), torch.zeros(32, 4, 1)
    suffix = "32" if of == "tf32" else ""
    held = [fragments(x, place).contiguous() for x, place in ((a, f"a{suffix}"), (b, f"b{suffix}"), (c, "c"))]
    run(
        f"""
        {each(16, 0, "%rd1")}
        {each(8, 1, "%rd2")}
        {each(16, 2, "%rd3")}
        {each(16, 3, "%rd4")}
        ld.global.v4.b32 {vector("r", 4, 0)}, [%rd1];
        ld.global.v2.b32 {vector("r", 2, 4)}, [%rd2];
        ld.global.v4.b32 {vector("r", 4, 6)}, [%rd3];
        mma.sync.aligned.m16n8k{k}.row.col.f32.{of}.{of}.f32 {vector("r", 4, 10)}, {vector("r", 4, 0)},
            {vector("r", 2, 4)}, {vector("r", 4, 6)};
        st.global.v4.b32 [%rd4], {vector("r", 4, 10)};
        """,
        *held, out,
    )  # fmt: skip
    torch.testing.assert_close(out, fragments(a.float() @ b.float() + c, "c"))


# wgmma. The layouts in shared memory follow CUTLASS's words: a pattern is 8 rows of 16 bytes times the swizzle's width,
# in which 16-byte part p of row r lies at part p xor (r modulo the width), counted in rows of 128 bytes.


def in_shared(x: Tensor, swizzle: int, along_k: bool) -> tuple[Tensor, int, int, int]:
    """A matrix [rows,k] as it lies in shared memory, with the leading and the stride offset and the size in bytes.

    Args:
        swizzle: bytes of a row of the pattern: 16 (none), 32, 64 or 128.
        along_k: whether the numbers of a row of memory follow ``k``; else they follow the rows.
    """
    size = x.element_size()
    x = x if along_k else x.T  # [across,along]
    across, along = x.shape
    per_row = swizzle // size
    tile = 8 * swizzle  # bytes of one pattern
    patterns = (-(-along // per_row), across // 8)
    out = torch.zeros(patterns[0] * patterns[1] * tile, dtype=torch.uint8)
    numbers = out.view(x.dtype)
    for r in range(across):
        for c in range(along):
            byte = (c // per_row * patterns[1] + r // 8) * tile + r % 8 * swizzle + c % per_row * size
            line, part = byte // 128, byte // 16
            if swizzle > 16:
                part ^= line % 8 & (swizzle // 16 - 1)
            numbers[(part * 16 + byte % 16) // size] = x[r, c]
    between_along, between_across = patterns[1] * tile, tile
    # Without a swizzle the two offsets change places between the layouts.
    offsets = (between_along, between_across)
    if swizzle == 16 and not along_k:
        offsets = (between_across, between_along)
    return out, *offsets, len(out)


def descriptor(start: int, leading: int, stride: int, swizzle: int) -> int:
    mode = {16: 0, 128: 1, 64: 2, 32: 3}[swizzle]
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62


def copied(tensor: int, at: int, size: int) -> str:
    """Copy a tensor to shared memory, 16 bytes a thread at a time."""
    address = f"shl.b32 %r1, %r100, 4;\n{each(16, tensor, '%rd1')}\n"
    return address + "\n".join(
        f"setp.lt.u32 %p1, %r100, {(size - i) // 16};\n"
        f"@%p1 ld.global.v4.b32 {{%r2, %r3, %r4, %r5}}, [%rd1+{i}];\n"
        f"@%p1 st.shared.v4.b32 [%r1+{at + i}], {{%r2, %r3, %r4, %r5}};"
        for i in range(0, size, 2048)
    )


def multiplied(
    a: Tensor, b: Tensor, of: str, swizzles: tuple[int, int], along_k: tuple[bool, bool], in_registers: bool,
    c: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """a [64,k] times the transpose of b [n,k], plus c [64,n], by one wgmma."""
    (n, k), narrow = b.shape, of != "tf32"
    name = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{of}.{of}"
    laid_b, leading, stride, size_b = in_shared(b, swizzles[1], along_k[1])
    describe_b = descriptor(0, leading, stride, swizzles[1])
    at = -(-size_b // 1024) * 1024
    body, total = [copied(1, 0, size_b)], at
    if in_registers:
        suffix = "a" if narrow else "a32"
        given = torch.cat([fragments(warp, suffix) for warp in a.split(16)]).contiguous()
        body.append(f"{each(16, 0, '%rd2')}\nld.global.v4.b32 {vector('r', 4, 10)}, [%rd2];")
        left, flags = vector("r", 4, 10), [0 if along_k[1] else 1] if narrow else []
    else:
        given, leading, stride, size_a = in_shared(a, swizzles[0], along_k[0])
        body += [copied(0, at, size_a), f"mov.b64 %rd3, {descriptor(at, leading, stride, swizzles[0])};"]
        left, flags = "%rd3", [0 if x else 1 for x in along_k] if narrow else []
        total += size_a
    out, held = torch.zeros(128, n // 2, 1), torch.zeros(128, n // 2, 1)
    if c is not None:
        held = torch.cat([fragments(warp, "c") for warp in c.split(16)]).contiguous()
    body += [f"{each(2 * n, 3, '%rd5')}\n{each(2 * n, 2, '%rd6')}", f"mov.b64 %rd4, {describe_b};"]
    body += [f"ld.global.b32 %r{200 + i}, [%rd5+{4 * i}];" for i in range(n // 2)]
    body += [
        "bar.sync 0;\nfence.proxy.async.shared::cta;\nwgmma.fence.sync.aligned;",
        f"setp.eq.b32 %p2, {int(c is None)}, 0;",
    ]
    tail = "".join(f", {x}" for x in (1, 1, *flags))
    body += [f"{name} {vector('r', n // 2, 200)}, {left}, %rd4, %p2{tail};"]
    body += ["wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;"]
    body += [f"st.global.b32 [%rd6+{4 * i}], %r{200 + i};" for i in range(n // 2)]
    run("\n".join(body), given, laid_b, out, held, threads=128, shared=total)
    return out


def numbers(rows: int, k: int, of: str) -> Tensor:
    return of_type(torch.randn(rows, k), of)


def assert_product(found: Tensor, a: Tensor, b: Tensor, c: Tensor | None = None) -> None:
    wanted = a.float() @ b.float().T + (0 if c is None else c)
    torch.testing.assert_close(found, torch.cat([fragments(warp, "c") for warp in wanted.split(16)]))


WGMMA = [x for x in OPCODES if x.startswith("wgmma.mma_async")]


@pytest.mark.parametrize("name", WGMMA)
def test_products_of_four_warps(name: str) -> None:
    shape, of = name.split(".")[4], name.split(".")[6]
    n, k = (int(x) for x in shape[4:].split("k"))
    a, b, c = numbers(64, k, of), numbers(n, k, of), torch.randn(64, n)
    assert_product(multiplied(a, b, of, (32, 32), (True, True), n % 16 == 0, c), a, b, c)


@pytest.mark.parametrize("in_registers", [True, False])
@pytest.mark.parametrize("along_k", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("swizzles", [(16, 16), (32, 64), (64, 128), (128, 32)])
def test_layouts_in_shared_memory(swizzles: tuple[int, int], along_k: tuple[bool, bool], in_registers: bool) -> None:
    a, b = numbers(64, 16, "f16"), numbers(128, 16, "f16")
    assert_product(multiplied(a, b, "f16", swizzles, along_k, in_registers), a, b)
