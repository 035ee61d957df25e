"""The kinds of fault of test_kinds.py in the Triton kernels; few and small cases, since the interpreter is slow."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

if not find_spec("triton"):
    pytest.skip("Triton is not installed", allow_module_level=True)

from tests.ops.common.drawn import DIFFERENTIABLE, OPS, draw, implementations
from tests.ops.common.fuzz import check

every_op = pytest.mark.parametrize("op", [op for op in OPS if "triton" in implementations(op)])
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="its interpreter is off where there is a GPU")


@every_op
@pytest.mark.parametrize("seed", range(2))
def test_layouts_and_ids(op: str, seed: int) -> None:
    check(draw(op, seed, dtype=torch.float32, wide=True), "triton")


@every_op
@pytest.mark.parametrize("seed", range(2))
def test_sizes_of_zero(op: str, seed: int) -> None:
    check(draw(op, seed + 10, dtype=torch.float32, wide=True, zeros=0.5), "triton")


@every_op
def test_autocast(op: str) -> None:
    mode = "backward" if op in DIFFERENTIABLE else "no grad"
    check(draw(op, 30, dtype=torch.float32, wide=True), "triton", mode, torch.bfloat16, True)
