"""Operands so widely strided that an index times a stride exceeds 2³¹, views of a file that is nearly all holes."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests.ops.common import fuzz
from tests.ops.common.drawing import Draw
from tests.ops.common.drawn import OPS, came, draw, implementations

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is off where there is a GPU")

Lay = Callable[[Tensor], Tensor]


@pytest.fixture
def memory(tmp_path: Path) -> Tensor:
    """An address space of 4 TiB, all of it 0."""
    path = tmp_path / "memory"
    found = torch.from_file(str(path), shared=True, size=2**42, dtype=torch.uint8)
    path.unlink()  # the mapping keeps what is written
    return found


def layer(memory: Tensor, row: bool) -> Lay:
    """Lays a tensor out so that in each dimension of 3 or more the last index times its stride exceeds 2³¹.

    ``row``: the last dimension is contiguous. An offset that wraps around reads a 0 in front of the tensor.
    """
    operands = 0

    def lay(x: Tensor) -> Tensor:
        nonlocal operands
        if x.ndim == 0 or not x.numel():
            return x
        # No two elements share an address, because the strides' remainders differ.
        strides = [ceil(2**31 / max(2, n - 1)) + 8192 * (i + 1) ** 3 for i, n in enumerate(x.shape)]
        if row:
            strides[-1] = 1
        first = operands * 2**37 // x.element_size() + 2**33
        operands += 1
        found = x.new_empty(0).set_(memory.untyped_storage(), first, x.shape, strides).copy_(x)
        assert torch.equal(found, x)
        return found

    return lay


@pytest.mark.parametrize("row", [True, False], ids=["rows", "elements"])
@pytest.mark.parametrize(
    ("op", "impl"), [(op, impl) for op in OPS for impl in ("cpu", "triton") if impl in implementations(op)]
)
def test_offsets_beyond_32_bits(op: str, impl: str, row: bool, memory: Tensor) -> None:
    lay = layer(memory, row)

    def came_laid(*args: object) -> tuple[Tensor, ...]:
        return tuple(map(lay, came(*args)))  # type: ignore[arg-type]

    with patch.object(Draw, "size", lambda self, most, least=1: most), patch.object(fuzz, "came", came_laid):
        case = draw(op, 1, dtype=torch.float32, wide=True, layouts=False)
        given = {n: lay(x) if isinstance(x, Tensor) and "probe" not in n else x for n, x in case.given.items()}
        fuzz.check(case._replace(given=given), impl)
