"""What a kernel must not do is found, and what it may do is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ptx.assembled import each, run
from tests.ptx.memory import FaultError
from tests.ptx.test_matrix import copied, descriptor, in_shared, numbers, vector

# Global memory.


def load(offset: str = "", element: str = "b32") -> str:
    registers = "{%r1, %r2}" if element.startswith("v2") else "%r1"
    return f"{each(4, 0, '%rd1')}\nld.global.{element} {registers}, [%rd1{offset}];"


def test_beyond_a_tensor() -> None:
    x = torch.zeros(32, dtype=torch.int32)
    run(load(), x)
    for body in (
        load("+4"),
        load("+-4"),
        f"{load('+4').replace('ld.global.b32 %r1,', 'st.global.b32')}".replace("];", "], %r100;"),
    ):
        with pytest.raises(FaultError, match=r"touches memory of no argument, at \d+ bytes from"):
            run(body, x)


def test_a_mask_keeps_threads_from_it() -> None:
    x = torch.zeros(20, dtype=torch.int32)
    guarded = load().replace("ld.global", "setp.lt.u32 %p1, %r100, 20;\n@%p1 ld.global")
    run(guarded, x)
    with pytest.raises(FaultError, match="touches memory of no argument"):
        run(guarded.replace("%r100, 20", "%r100, 21"), x)


def test_between_the_elements_of_a_view() -> None:
    x = torch.zeros(64, dtype=torch.int32)
    run(load().replace("%r100, 4,", "%r100, 8,"), x[::2])
    with pytest.raises(FaultError, match="touches elements between those of the arguments"):
        run(load(), x[::2])


def test_an_access_that_is_not_aligned() -> None:
    x = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(FaultError, match="is not aligned to its 8 bytes"):
        run(load(element="v2.b32"), x)


def test_an_index_that_overflows_32_bits() -> None:
    """The product of a thread and a stride of 2³⁰ elements, in 32 bits, reads elsewhere than the tensor's rows."""
    storage = torch.empty(3 * 2**30 + 1, dtype=torch.int16)  # its pages are not touched
    x = storage.as_strided((4,), (2**30,))
    rows = "setp.lt.u32 %p1, %r100, 4;\n{}\n@%p1 ld.global.b16 %rs1, [%rd3];"
    run(rows.format("mul.wide.u32 %rd1, %r100, 1073741824;\nshl.b64 %rd2, %rd1, 1;\nadd.s64 %rd3, %rd100, %rd2;"), x)
    wrong = "mul.lo.s32 %r1, %r100, 1073741824;\nmul.wide.s32 %rd2, %r1, 2;\nadd.s64 %rd3, %rd100, %rd2;"
    with pytest.raises(FaultError, match="touches memory of no argument"):
        run(rows.format(wrong), x)


def test_memory_that_nothing_has_written() -> None:
    x, unset = torch.zeros(32, dtype=torch.int32), np.zeros(128, np.bool_)
    run(load(), x, unset=(unset,))
    unset[77] = True
    with pytest.raises(FaultError, match="reads memory that nothing has written"):
        run(load(), x, unset=(unset,))
    store = f"{each(4, 0, '%rd1')}\nst.global.b32 [%rd1], %r100;\n"
    run(store + load(), x, unset=(unset,))
    assert not unset.any()


def test_two_writers() -> None:
    x = torch.zeros(64, dtype=torch.int32)
    store = f"""
        {each(4, 0, "%rd1")}
        mov.u32 %r1, %ctaid.x;
        mad.wide.u32 %rd2, %r1, {{}}, %rd1;
        st.global.b32 [%rd2], %r100;
    """
    run(store.format(128), x, grid=(2, 1, 1))
    with pytest.raises(FaultError, match="program .1, 0, 0. of .2, 1, 1.: .*writes what has been written"):
        run(store.format(124), x, grid=(2, 1, 1))
    with pytest.raises(FaultError, match="writes what has been written in this launch"):
        run("st.global.b32 [%rd100], %r100;", x)


@pytest.mark.parametrize("reader", [0, 1])
def test_a_program_that_reads_what_another_writes(reader: int) -> None:
    x = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(FaultError, match="another program of the launch has"):
        run(
            f"""
            mov.u32 %r1, %ctaid.x;
            setp.eq.u32 %p1, %r1, {reader};
            @%p1 ld.global.b32 %r2, [%rd100];
            @!%p1 st.global.b32 [%rd100], %r1;
            """.replace("setp.eq.u32", "setp.eq.b32"),
            x, threads=1, grid=(2, 1, 1),
        )  # fmt: skip


@pytest.mark.parametrize("first", ["st", "ld"])
def test_threads_that_touch_one_element_have_a_barrier_between(first: str) -> None:
    """Each thread touches its own element, and then, if it reads or writes, the one of thread ``1 - thread``."""
    x = torch.zeros(2, dtype=torch.int32)
    own, other = "[%rd1]", "[%rd2]"
    store, load_, barrier = "st.global.b32 {}, %r100;", "ld.global.b32 %r2, {};", "bar.sync 0;"
    before, after = (store, load_) if first == "st" else (load_, store)
    addresses = f"{each(4, 0, '%rd1')}\nxor.b32 %r1, %r100, 1;\nmad.wide.u32 %rd2, %r1, 4, %rd100;"
    run("\n".join([addresses, before.format(own), after.format(own)]), x, threads=2)
    run("\n".join([addresses, before.format(own), barrier, after.format(other)]), x, threads=2)
    with pytest.raises(FaultError, match="race: .* another thread has .* since the last barrier"):
        run("\n".join([addresses, before.format(own), after.format(other)]), x, threads=2)


def test_an_element_that_several_threads_have_read() -> None:
    """Then none of them may write it, not the one that has read it last either."""
    x = torch.zeros(2, dtype=torch.int32)
    for thread in (0, 1):
        write = f"setp.eq.b32 %p1, %r100, {thread};\n@%p1 st.global.b32 [%rd100], %r100;"
        with pytest.raises(FaultError, match="race: writes what another thread has read"):
            run(f"ld.global.b32 %r2, [%rd100];\n{write}", x, threads=2)
        run(f"ld.global.b32 %r2, [%rd100];\nbar.sync 0;\n{write}", x, threads=2)


# Registers and branches.


@pytest.mark.parametrize("instruction", ["div.s32", "rem.s32"])
def test_a_division_by_0(instruction: str) -> None:
    divide = f"mov.b32 %r1, 7;\nsetp.eq.b32 %p1, %r100, 0;\n{{}} {instruction} %r2, %r1, %r100;"
    run(divide.format("@!%p1"))
    with pytest.raises(FaultError, match="divides by 0"):
        run(divide.format(""))


def test_a_register_that_nothing_has_written() -> None:
    with pytest.raises(FaultError, match=r"add.s32 .* reads %r2, which nothing has written"):
        run("add.s32 %r1, %r2, 1;")


TOGETHER = ["ret", "bar.sync 0", "bar.warp.sync -1", "fence.proxy.async.shared::cta", "cp.async.commit_group"]


@pytest.mark.parametrize("instruction", TOGETHER[:-1])
def test_what_all_threads_do_together(instruction: str) -> None:
    with pytest.raises(FaultError, match="is divergent"):
        run(f"setp.lt.u32 %p1, %r100, 3;\n@%p1 {instruction};\nmov.b32 %r1, 0;")


@pytest.mark.parametrize("instruction", [*TOGETHER, "shfl.sync.idx.b32 %r2, %r1, 0, 31, -1"])
def test_what_no_thread_does_while_others_have_branched_ahead(instruction: str) -> None:
    with pytest.raises(FaultError, match="is divergent"):
        run(f"mov.b32 %r1, 0;\nsetp.lt.u32 %p1, %r100, 3;\n@%p1 bra $L__x;\n{instruction};\n$L__x:\nmov.b32 %r1, 0;")
    run(f"mov.b32 %r1, 0;\nsetp.lt.u32 %p1, %r100, 3;\n@%p1 bra $L__x;\n$L__x:\n{instruction};\nmov.b32 %r1, 0;")


def test_threads_go_back_together() -> None:
    with pytest.raises(FaultError, match="is divergent: some threads of the program go back"):
        run("$L__x:\nsetp.lt.u32 %p1, %r100, 3;\n@%p1 bra $L__x;")


# Shared memory: thread t writes or reads word t, or that of another thread.

WRITE = "shl.b32 %r1, %r100, 2;\nst.shared.b32 [%r1], %r100;"
READ = "xor.b32 %r2, %r1, {};\nld.shared.b32 %r3, [%r2];"
REWRITE = "xor.b32 %r2, %r1, {};\nst.shared.b32 [%r2], %r100;"


@pytest.mark.parametrize(
    ("after", "what"),
    [(READ, "reads what another thread has written"), (REWRITE, "writes what another thread has written")],
)
def test_a_barrier_is_missing(after: str, what: str) -> None:
    for barrier in ("", "bar.warp.sync -1;", "bar.sync 0;"):
        run(f"{WRITE}\n{barrier}\n{after.format(0)}", threads=64, shared=256)  # its own word
        for bit in (4, 128):  # another thread's of the warp; another warp's
            body = f"{WRITE}\n{barrier}\n{after.format(bit)}"
            if barrier == "bar.sync 0;" or (barrier and bit == 4):
                run(body, threads=64, shared=256)
            else:
                with pytest.raises(FaultError, match=f"race: {what} since the last barrier"):
                    run(body, threads=64, shared=256)


@pytest.mark.parametrize("barrier", ["", "bar.warp.sync -1;", "bar.sync 0;"])
@pytest.mark.parametrize("bit", [4, 128])
def test_what_was_read_is_overwritten(bit: int, barrier: str) -> None:
    body = f"{WRITE}\nbar.sync 0;\n{READ.format(bit)}\n{barrier}\nst.shared.b32 [%r1], %r3;"
    if barrier == "bar.sync 0;" or (barrier and bit == 4):
        run(body, threads=64, shared=256)
    else:
        with pytest.raises(FaultError, match="race: writes what another thread has read since the last barrier"):
            run(body, threads=64, shared=256)


def test_readers_of_several_warps_are_all_kept_in_mind() -> None:
    """All threads read word 0, warp 1 last; that warp writes it after a barrier of the warp alone."""
    body = f"""{WRITE}
        bar.sync 0;
        mov.b32 %r4, 0;
        ld.shared.b32 %r5, [%r4];
        bar.warp.sync -1;
        setp.eq.b32 %p1, %r100, 32;
        @%p1 st.shared.b32 [%r4], %r5;
    """
    with pytest.raises(FaultError, match="race: writes what another thread has read"):
        run(body, threads=64, shared=256)


def test_two_threads_write_different_values() -> None:
    with pytest.raises(FaultError, match="two threads write different values to one place"):
        run("mov.b32 %r1, 0;\nst.shared.b32 [%r1], %r100;", shared=4)
    run("mov.b32 %r1, 0;\nst.shared.b32 [%r1], %r1;", shared=4)
    run("mov.b32 %r1, 0;\nst.shared::cta.b32 [%r1], %r1;", shared=4)


def test_shared_memory_ends_and_begins_unwritten() -> None:
    with pytest.raises(FaultError, match="touches shared memory beyond its 124 bytes"):
        run(WRITE, shared=124)
    with pytest.raises(FaultError, match="reads shared memory that nothing has written"):
        run("shl.b32 %r1, %r100, 2;\nld.shared.b32 %r3, [%r1];", shared=128)


# Copies.

COPY = """
    shl.b32 %r1, %r100, 4;
    mad.wide.u32 %rd1, %r100, 16, %rd100;
    cp.async.cg.shared.global [%r1], [%rd1], 16, 16;
    cp.async.commit_group;
"""
USE = "xor.b32 %r2, %r1, {};\nld.shared.b32 %r3, [%r2];"


@pytest.mark.parametrize(
    ("between", "bit", "fault"),
    [
        ("", 0, "reads shared memory before the copy to it has been waited for"),
        ("cp.async.wait_group 1;", 0, "before the copy"),
        ("bar.sync 0;", 0, "before the copy"),
        ("cp.async.wait_group 0;", 0, None),  # one's own copy
        ("cp.async.wait_group 0;", 16, "reads what another thread has written since the last barrier"),
        ("cp.async.wait_group 0;\nbar.sync 0;", 16, None),
        ("bar.sync 0;\ncp.async.wait_group 0;", 16, "reads what another thread"),
    ],
)
def test_copies_are_waited_for(between: str, bit: int, fault: str | None) -> None:
    x = torch.zeros(128, dtype=torch.int32)
    body = f"{COPY}\n{between}\n{USE.format(bit)}"
    if fault is None:
        run(body, x, shared=512)
    else:
        with pytest.raises(FaultError, match=fault):
            run(body, x, shared=512)


def test_a_copy_writes() -> None:
    """It may not reach what another thread has just read, nor may another thread write where it arrives."""
    x = torch.zeros(128, dtype=torch.int32)
    first = f"{COPY}\ncp.async.wait_group 0;\nbar.sync 0;\n{USE.format(16)}\n"
    with pytest.raises(FaultError, match="writes what another thread has read since the last barrier"):
        run(first + COPY, x, shared=512)
    run(f"{first}\nbar.sync 0;\n{COPY}", x, shared=512)
    with pytest.raises(FaultError, match="writes shared memory before the copy to it has been waited for"):
        run(f"{COPY}\nst.shared.b32 [%r1], %r100;", x, shared=512)


# wgmma: a [64,16] · b [8,16]ᵀ, with a in registers %r10 to %r13 and the result in %r20 to %r23.

B_LAID, LEADING, STRIDE, SIZE = in_shared(numbers(8, 16, "f16"), 32, True)
FILL = (
    copied(0, 0, SIZE)
    + "\nmov.b32 %r10, 0;\nmov.b32 %r11, 0;\nmov.b32 %r12, 0;\nmov.b32 %r13, 0;\n"
    + "\n".join(f"mov.b32 %r{i}, 0;" for i in range(20, 24))
)
SYNC = "bar.sync 0;\nfence.proxy.async.shared::cta;\n"
FENCE = "wgmma.fence.sync.aligned;\n"
READY = FILL + SYNC + FENCE
PRODUCT = f"""
    mov.b64 %rd9, {descriptor(0, LEADING, STRIDE, 32)};
    mov.pred %p9, -1;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16
        {vector("r", 4, 20)}, {vector("r", 4, 10)}, %rd9, %p9, 1, 1, 0;
"""
COMMIT, WAIT = "wgmma.commit_group.sync.aligned;\n", "wgmma.wait_group.sync.aligned 0;\n"
READ_RESULT = "add.f32 %r30, %r20, %r21;\n"
OVERWRITE = "mov.b32 %r1, 0;\nst.shared.b32 [%r1], %r1;\n"


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (READY + PRODUCT + COMMIT + WAIT + READ_RESULT, None),
        (READY + PRODUCT + PRODUCT + COMMIT + WAIT + READ_RESULT, None),  # the second adds to the first
        (READY + PRODUCT + COMMIT + FENCE + PRODUCT + COMMIT + WAIT + READ_RESULT, None),
        (FILL + "fence.proxy.async.shared::cta;\nbar.sync 0;\n" + FENCE + PRODUCT + COMMIT + WAIT, None),
        (FILL + "bar.sync 0;\n" + FENCE + PRODUCT, "written since the last fence.proxy.async"),
        (FILL + "fence.proxy.async.shared::cta;\n" + FENCE + PRODUCT, "written since the last barrier"),
        (FILL + SYNC + PRODUCT, "has no wgmma.fence before it"),
        (FILL + SYNC + FENCE + "mov.b32 %r11, 1;\n" + PRODUCT, "reads registers that have been written since"),
        (FILL + SYNC + FENCE + "mov.b32 %r22, 1;\n" + PRODUCT, "adds to registers that have been written since"),
        (READY + PRODUCT + COMMIT + READ_RESULT, "reads %r20, which nothing has written or a wgmma is"),
        (READY + PRODUCT + COMMIT + WAIT.replace("0", "1") + READ_RESULT, "reads %r20"),
        (READY + PRODUCT + COMMIT + "mov.b32 %r11, 1;\n" + WAIT, "reads registers which have been written"),
        (READY + PRODUCT + COMMIT + "mov.b32 %r20, 1;\n" + WAIT, "results' registers have been written"),
        (READY + PRODUCT + COMMIT + "bar.sync 0;\n" + OVERWRITE, "that a wgmma reads, before the wgmma"),
        (READY + PRODUCT + COMMIT + WAIT + OVERWRITE, "another thread has read since the last barrier"),
        (READY + PRODUCT + COMMIT + WAIT + "bar.sync 0;\n" + OVERWRITE, None),
    ],
)  # fmt: skip
def test_the_order_of_wgmma(body: str, fault: str | None) -> None:
    if fault is None:
        run(body, B_LAID, threads=128, shared=SIZE)
    else:
        with pytest.raises(FaultError, match=fault):
            run(body, B_LAID, threads=128, shared=SIZE)


def test_descriptors_and_their_memory() -> None:
    outside = PRODUCT.replace(str(descriptor(0, LEADING, STRIDE, 32)), str(descriptor(64, LEADING, STRIDE, 32)))
    with pytest.raises(FaultError, match=f"touches shared memory beyond its {SIZE} bytes"):
        run(FILL + SYNC + FENCE + outside, B_LAID, threads=128, shared=SIZE)
    differ = PRODUCT.replace("mov.pred", "cvt.u64.u32 %rd8, %r100;\nadd.s64 %rd9, %rd9, %rd8;\nmov.pred")
    with pytest.raises(FaultError, match="descriptors that differ within a warpgroup"):
        run(FILL + SYNC + FENCE + differ, B_LAID, threads=128, shared=SIZE)


def test_an_instruction_that_is_not_known_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"the emulator has no tanh.approx.f32"):
        run("tanh.approx.f32 %r1, %r100;")
