"""Faults planted into kernels: each is found. Without them, the same kernels run.

They are compiled, so they run where the emulator does: `test_kernels.py` starts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl

from symground import ops
from tests.ops.common.triton_device import EMULATED
from tests.ptx import emulator
from tests.ptx.memory import FaultError
from tests.ptx.program import Program, parse


@triton.jit(do_not_specialize=["s_x", "N"])
def copy_kernel(p_x, p_y, s_x, N, MASKED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Copy N rows of one number, each s_x after the one before, to y [N]. Grid: tiles of rows."""
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    p_row = p_x + (o_n.to(tl.int64) if WIDE else o_n) * s_x
    if MASKED:  # noqa: SIM108
        b_x = tl.load(p_row, mask=o_n < N, other=0.0)
    else:
        b_x = tl.load(p_row)
    tl.store(p_y + o_n, b_x, mask=o_n < N)


def copied(x: torch.Tensor, masked: bool = True, wide: bool = True) -> torch.Tensor:
    y = torch.empty(len(x), dtype=x.dtype)
    copy_kernel[(triton.cdiv(len(x), 128),)](x, y, x.stride(0), len(x), masked, wide, 128)
    return y


def test_a_mask_is_missing() -> None:
    x = torch.randn(200)
    assert torch.equal(copied(x), x)
    with pytest.raises(
        FaultError, match=r"copy_kernel, program .1, 0, 0.*planted.py:\d+. touches memory of no argument"
    ):
        copied(x, masked=False)
    assert torch.equal(copied(x[:128], masked=False), x[:128])


def test_an_offset_overflows_32_bits(tmp_path: Path) -> None:
    # A file that is nearly all holes: memory from torch.empty is filled whole under the emulator.
    storage = torch.from_file(str(tmp_path / "memory"), shared=True, size=3 * 2**30 + 1, dtype=torch.float16)
    x = storage.as_strided((4,), (2**30,))
    x.copy_(torch.arange(4))
    assert copied(x).tolist() == [0, 1, 2, 3]
    with pytest.raises(FaultError, match="touches memory of no argument"):
        copied(x, wide=False)


@pytest.mark.parametrize(
    "write", [lambda x: x.zero_(), lambda x: x.copy_(torch.ones(128)), lambda x: x.add_(x.fill_(1))]
)
def test_memory_of_which_a_part_is_written(write: Callable[[torch.Tensor], object]) -> None:
    x = torch.empty(256)
    write(x[:128])
    assert copied(x[:128]).isfinite().all()
    with pytest.raises(FaultError, match="reads memory that nothing has written"):
        copied(x)
    with pytest.raises(FaultError, match="sum reads memory that nothing has written"):
        x.sum()


def attention() -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 150, 64, generator=g, dtype=torch.float32).bfloat16() for _ in range(3))
    out, _ = ops.attention(q, k, v, impl="triton")
    return out


@pytest.fixture
def without(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction of a name is left out of the kernels."""
    name: str = request.param

    def left_out(text: str) -> Program:
        program = parse(text)
        kept = [not x.opcode.startswith(name) for x in program.instructions]
        program.labels = {label: sum(kept[:place]) for label, place in program.labels.items()}
        program.instructions = [x for x, keep in zip(program.instructions, kept, strict=True) if keep]
        return program

    emulator.kernel.cache_clear()
    with mock.patch.object(emulator, "parse", left_out):
        yield name
    emulator.kernel.cache_clear()


SYNCHRONISATION = ("bar.sync", "cp.async.wait_group", "fence.proxy.async", "wgmma.fence", "wgmma.wait_group")


@pytest.mark.parametrize("without", SYNCHRONISATION, indirect=True)
def test_synchronisation_is_missing(without: str) -> None:
    if without.startswith(("fence", "wgmma")) and EMULATED != "sm_90":
        assert attention().isfinite().all()  # there is none to leave out
        return
    with pytest.raises(FaultError):
        attention()
