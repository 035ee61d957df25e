"""Prefix sums in a fixed order. PyTorch's cumsum has none on a GPU, where it refuses to be deterministic."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from symground.kernels.common.launch import cdiv, launch, power_of_2

#: Numbers of a tile; a row that is longer is summed tile by tile.
TILE = 1024


@triton.jit(do_not_specialize=["rows", "length"])
def prefix_sums_kernel(p_x, p_sums, rows, length, BACK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """sums[r,t] = Σ x[r,u] over u <= t, with ``BACK`` over u >= t, of contiguous [rows,length]. Grid: tiles of rows."""
    o_r = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)[:, None]
    b_before = tl.zeros([BM, 1], p_x.dtype.element_ty)
    for first in range(0, length, BN):
        o_t = first + tl.arange(0, BN)[None, :]
        m_tile = (o_r < rows) & (o_t < length)
        if BACK:
            o_t = length - 1 - o_t
        b_x = tl.load(p_x + o_r * length + o_t, mask=m_tile, other=0.0)  # [BM,BN]
        tl.store(p_sums + o_r * length + o_t, b_before + tl.cumsum(b_x, 1), mask=m_tile)
        b_before += tl.sum(b_x, 1)[:, None]


def prefix_sums(x: torch.Tensor, back: bool = False) -> torch.Tensor:
    """The sums of ``x`` along its last dimension up to each position, or with ``back`` from it on; contiguous."""
    x = x.contiguous()
    sums = torch.empty_like(x)
    length = x.shape[-1]
    if x.numel():
        BN = min(TILE, power_of_2(length))
        BM = max(1, TILE // BN)
        rows = x.numel() // length
        launch(prefix_sums_kernel, (cdiv(rows, BM),), (x, sums), (rows, length), BACK=back, BM=BM, BN=BN, num_warps=4)
    return sums
