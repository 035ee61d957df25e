"""The kinds of fault of test_kinds.py in the Triton kernels; few and small cases, since the interpreter is slow."""

from __future__ import annotations

import random
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

if not find_spec("triton"):
    pytest.skip("Triton is not installed", allow_module_level=True)

from tests.ops.common.drawing import LAYOUTS, laid_out
from tests.ops.common.drawn import DIFFERENTIABLE, OPS, draw, implementations
from tests.ops.common.fuzz import check

every_op = pytest.mark.parametrize("op", [op for op in OPS if "triton" in implementations(op)])
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="its interpreter is off where there is a GPU")


@every_op
@pytest.mark.parametrize("seed", range(2))
def test_layouts_and_ids(op: str, seed: int) -> None:
    check(draw(op, seed, dtype=torch.float32, wide=True), "triton")


@every_op
@pytest.mark.parametrize("layout", [x for x in LAYOUTS if x != "overlapping"])  # which makes ranges that end too early
def test_every_tensor_in_one_layout(op: str, layout: str) -> None:
    """Ids are int64, which no conversion copies into memory of its own before a kernel reads them."""
    for seed in range(20, 23):
        case = draw(op, seed, dtype=torch.float32, wide=True, layouts=False)
        given = {
            name: laid_out(x if x.is_floating_point() else x.long(), layout, random.Random(seed))
            if isinstance(x, Tensor) and "probe" not in name
            else x
            for name, x in case.given.items()
        }
        check(case._replace(given=given), "triton")


@every_op
@pytest.mark.parametrize("seed", range(2))
def test_sizes_of_zero(op: str, seed: int) -> None:
    check(draw(op, seed + 10, dtype=torch.float32, wide=True, zeros=0.5), "triton")


@every_op
def test_autocast(op: str) -> None:
    mode = "backward" if op in DIFFERENTIABLE else "no grad"
    check(draw(op, 30, dtype=torch.float32, wide=True), "triton", mode, torch.bfloat16, True)
