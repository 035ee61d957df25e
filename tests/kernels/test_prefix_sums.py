"""Prefix sums in a fixed order, against NumPy's in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ops.common.triton_device import DEVICE

from symground.kernels.common.prefix_sums import TILE, prefix_sums  # isort: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 2, 64), (70, 33), (2, 2 * TILE + 5), (5, 1), (0, 4), (4, 0)])
def test_sums_to_and_from_each_position(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[..., ::3] *= 1000
    laid = x.mT.contiguous().mT.to(DEVICE)  # not contiguous
    exact = x.double().numpy()
    upto, from_it = np.cumsum(exact, -1), np.cumsum(exact[..., ::-1], -1)[..., ::-1]
    bound = 8 * torch.finfo(dtype).eps * np.abs(exact).sum(-1, keepdims=True)
    for back, wanted in ((False, upto), (True, from_it)):
        found = prefix_sums(laid, back)
        assert found.dtype == dtype
        assert found.is_contiguous()
        assert (np.abs(found.double().cpu().numpy() - wanted) <= bound).all()
