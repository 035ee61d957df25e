"""Sums of |S| over groups of positions: what a program adds for each tile, and stores at its end.

A program has a tile of queries. For each query it sums |S| by groups of keys. At its end it sums its queries by their
groups and stores the result as its own part. The parts are added afterwards in a fixed order, without atomics.
"""

import triton
import triton.language as tl

from symground.kernels.common.launch import power_of_2

#: The most groups of keys that a program sums; if there are more, they are processed in blocks.
MOST_GROUPS = 16


def groups_of(num_key_groups: int) -> int:
    """The number of groups of keys that a program is compiled for, a power of two."""
    return min(MOST_GROUPS, power_of_2(num_key_groups))


@triton.jit
def add_flow(b_flow, b_total, b_s, p_groups, first_group, o_j, last):
    """Add |S| [BM,BN] of keys o_j to the sums by group of keys [BM,GROUPS] and over all keys [BM]."""
    GROUPS: tl.constexpr = b_flow.shape[1]
    b_group = tl.load(p_groups + o_j, mask=o_j < last, other=-1).to(tl.int32) - first_group
    # One masked sum for each group. In float32 a product with a 0/1 matrix would take three TF32 products, whose
    # operands do not fit the registers together with the tile's own.
    for b in tl.static_range(GROUPS):
        b_sum = tl.sum(tl.where((b_group == b)[None, :], b_s, 0.0), 1)  # [BM]
        b_flow = tl.where((tl.arange(0, GROUPS) == b)[None, :], b_flow + b_sum[:, None], b_flow)
    return b_flow, b_total + tl.sum(b_s, 1)


@triton.jit
def store_flow(
    p_flow, p_row_total, i_part, b_flow, b_total, b_group, first_group, num_query_groups, num_key_groups,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """Sum [BM,GROUPS] by the queries' groups and store it as part i_part of F and of the row totals."""
    o_b = first_group + tl.arange(0, GROUPS)
    for a in range(num_query_groups):
        m_a = b_group == a
        b_sum = tl.sum(tl.where(m_a[:, None], b_flow, 0.0), 0)
        tl.store(p_flow + (i_part * num_query_groups + a) * num_key_groups + o_b, b_sum, mask=o_b < num_key_groups)
        if first_group == 0:
            tl.store(p_row_total + i_part * num_query_groups + a, tl.sum(tl.where(m_a, b_total, 0.0), 0))
