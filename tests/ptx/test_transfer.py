"""Loads, stores, copies, branches and shuffles."""

from __future__ import annotations

import pytest
import torch

from tests.ptx.assembled import each, run
from tests.ptx.transfer import ELEMENTS

_REGISTERS = {16: "%rs", 32: "%r", 64: "%rd"}


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("element", [x for x in ELEMENTS if "s32" not in x])
def test_what_is_stored_is_loaded(space: str, element: str) -> None:
    count, width = int(element[1]) if element[0] == "v" else 1, int(element.rpartition("b")[2])
    names = [f"{_REGISTERS[width]}{i}" for i in range(count)]
    registers = f"{{{', '.join(names)}}}" if count > 1 else names[0]
    size = count * width // 8
    given = torch.randint(0, 256, (32, size), dtype=torch.uint8).view(torch.int16)
    out = torch.zeros_like(given)
    through = (
        ""
        if space == "global"
        else f"st.shared.{element} [%r51], {registers};\nld.shared.{element} {registers}, [%r51];"
    )
    run(
        f"""
        {each(size, 0, "%rd51")}
        {each(size, 1, "%rd52")}
        mul.lo.s32 %r51, %r100, {size};
        ld.global.{element} {registers}, [%rd51];
        {through}
        st.global.{element} [%rd52], {registers};
        """,
        given, out, shared=32 * size,
    )  # fmt: skip
    assert torch.equal(out, given)


def test_a_byte_in_shared_memory() -> None:
    """The lowest eight bits of a register, beside those of other threads."""
    out = torch.zeros(32, dtype=torch.int16)
    run(
        f"""
        {each(2, 0, "%rd1")}
        add.s32 %r1, %r100, 250;
        cvt.u16.u32 %rs1, %r1;
        st.shared.b8 [%r100], %rs1;
        ld.shared.b8 %rs2, [%r100];
        st.global.b16 [%rd1], %rs2;
        """,
        out, shared=32,
    )  # fmt: skip
    assert out.tolist() == [(i + 250) % 256 for i in range(32)]


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("vector", ["", "v2.", "v4."])
def test_a_signed_load_extends_the_sign(space: str, vector: str) -> None:
    count = int(vector[1]) if vector else 1
    names = [f"%rd{i}" for i in range(count)]
    registers = f"{{{', '.join(names)}}}" if count > 1 else names[0]
    given, out = (
        torch.randint(-(2**31), 2**31, (32, count), dtype=torch.int32),
        torch.zeros(32, count, dtype=torch.int64),
    )
    body = [each(4 * count, 0, "%rd11"), each(8 * count, 1, "%rd12"), f"mul.lo.s32 %r1, %r100, {4 * count};"]
    at = "%rd11"
    if space == "shared":
        body += [
            f"ld.global.b32 %r{2 + i}, [%rd11+{4 * i}];\nst.shared.b32 [%r1+{4 * i}], %r{2 + i};" for i in range(count)
        ]
        at = "%r1"
    body.append(f"ld.{space}.{vector}s32 {registers}, [{at}];")
    body += [f"st.global.b64 [%rd12+{8 * i}], {name};" for i, name in enumerate(names)]
    run("\n".join(body), given, out, shared=128 * count)
    assert torch.equal(out, given.long())


def test_parameters() -> None:
    """32 bits of a number, its sign extended, and an address are as they were given."""
    from tests.ptx.machine import Kernel
    from tests.ptx.memory import GlobalMemory
    from tests.ptx.program import parse

    out = torch.zeros(4, dtype=torch.int64)
    text = """.visible .entry test(
    .param .u64 .ptr .global .align 1 a, .param .u32 b, .param .f32 c
    )
    {
    ld.param.b64 %rd1, [a];
    ld.param.b32 %r1, [b];
    ld.param.s32 %rd2, [b];
    ld.param.b32 %r2, [c];
    mov.b64 %rd3, {%r1, %r2};
    st.global.b64 [%rd1], %rd2;
    st.global.b64 [%rd1+8], %rd3;
    st.global.b64 [%rd1+16], %rd1;
    exit;
    }
    """
    memory = GlobalMemory([out])
    values = {"a": ("u64", out.data_ptr()), "b": ("u32", -5), "c": ("f32", 0.5)}
    Kernel(parse(text)).launch((1, 1, 1), 1, 0, values, memory)
    assert out.tolist() == [-5, 0x3F000000 << 32 | 0xFFFFFFFB, out.data_ptr(), 0]


@pytest.mark.parametrize("cache", ["ca", "cg"])
@pytest.mark.parametrize("waits", ["wait_group 0", "wait_all"])
def test_a_copy_arrives_when_it_is_waited_for_and_is_0_where_it_is_masked(cache: str, waits: str) -> None:
    given, out = torch.randint(1, 1000, (32, 4), dtype=torch.int32), torch.zeros(32, 4, dtype=torch.int32)
    run(
        f"""
        {each(16, 0, "%rd1")}
        {each(16, 1, "%rd2")}
        shl.b32 %r1, %r100, 4;
        setp.lt.u32 %p1, %r100, 20;
        selp.b32 %r2, 16, 0, %p1;
        cp.async.{cache}.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
        cp.async.commit_group;
        cp.async.{waits};
        ld.shared.v4.b32 {{%r3, %r4, %r5, %r6}}, [%r1];
        st.global.v4.b32 [%rd2], {{%r3, %r4, %r5, %r6}};
        """,
        given, out, shared=512,
    )  # fmt: skip
    given[20:] = 0
    assert torch.equal(out, given)


def test_a_loop_and_the_numbers_of_the_program() -> None:
    """Each of 2 × 3 programs writes 10 · x + y times its number of turns."""
    out = torch.zeros(6, dtype=torch.int32)
    run(
        """
        mov.u32 %r1, %ctaid.x;
        mov.u32 %r2, %ctaid.y;
        mov.u32 %r3, %nctaid.x;
        mad.lo.s32 %r4, %r2, %r3, %r1;
        mov.b32 %r5, 0;
        mov.b32 %r6, 0;
        $L__again:
        mad.lo.s32 %r6, %r1, 10, %r6;
        add.s32 %r6, %r6, %r2;
        add.s32 %r5, %r5, 1;
        setp.lt.s32 %p1, %r5, 4;
        @%p1 bra $L__again;
        bra.uni $L__end;
        mov.b32 %r6, -1;
        $L__end:
        mad.wide.u32 %rd1, %r4, 4, %rd100;
        st.global.b32 [%rd1], %r6;
        """,
        out, threads=1, grid=(2, 3, 1),
    )  # fmt: skip
    assert out.tolist() == [4 * (10 * x + y) for y in range(3) for x in range(2)]


def test_threads_that_branch_ahead_meet_the_others_again() -> None:
    """An if and an else, of which the else has an if of its own."""
    out = torch.zeros(64, dtype=torch.int32)
    run(
        f"""
        {each(4, 0, "%rd1")}
        setp.lt.u32 %p1, %r100, 10;
        setp.lt.u32 %p2, %r100, 40;
        mov.b32 %r1, 1;
        @%p1 bra $L__then;
        mov.b32 %r1, 5;
        @!%p2 bra $L__inner;
        add.s32 %r1, %r1, 20;
        $L__inner:
        add.s32 %r1, %r1, 300;
        bra $L__end;
        $L__then:
        st.global.b32 [%rd1], %r1;
        add.s32 %r1, %r1, 7;
        $L__end:
        bar.sync 0;
        add.s32 %r1, %r1, 1000;
        @!%p1 st.global.b32 [%rd1], %r1;
        """,
        out, threads=64,
    )  # fmt: skip
    assert out.tolist() == [1] * 10 + [1325] * 30 + [1305] * 24


@pytest.mark.parametrize("by", [1, 2, 16, 31])
@pytest.mark.parametrize("mode", ["bfly", "idx", "up"])
@pytest.mark.parametrize("clamp", [31, 0x1C03, 0, 0x1C00])
def test_shuffles(mode: str, by: int, clamp: int) -> None:
    """A clamp of 0x1C03, or upwards 0x1C00, keeps shuffles within groups of 4 threads."""
    given, out = torch.randint(0, 1000, (64,), dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    run(
        f"""
        {each(4, 0, "%rd1")}
        {each(4, 1, "%rd2")}
        ld.global.b32 %r1, [%rd1];
        shfl.sync.{mode}.b32 %r2, %r1, {by}, {clamp}, -1;
        st.global.b32 [%rd2], %r2;
        """,
        given, out, threads=64,
    )  # fmt: skip
    for thread, got in enumerate(out.tolist()):
        lane, segment, limit = thread % 32, clamp >> 8 & 31, clamp & 31
        last = lane & segment | limit & ~segment
        of = {"bfly": lane ^ by, "idx": lane & segment | by & ~segment, "up": lane - by}[mode]
        there = of >= last if mode == "up" else of <= last
        assert got == given[thread - lane + (of if there else lane)]


@pytest.mark.parametrize("name", ["max", "min", "add"])
def test_reductions_of_a_warp(name: str) -> None:
    given, out = torch.randint(-1000, 1000, (64,), dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    run(
        f"""
        {each(4, 0, "%rd1")}
        {each(4, 1, "%rd2")}
        ld.global.b32 %r1, [%rd1];
        redux.sync.{name}.s32 %r2, %r1, -1;
        st.global.b32 [%rd2], %r2;
        """,
        given, out, threads=64,
    )  # fmt: skip
    wanted = [{"max": max, "min": min, "add": sum}[name](warp.tolist()) for warp in given.view(2, 32)]
    assert out.tolist() == [x for x in wanted for _ in range(32)]
