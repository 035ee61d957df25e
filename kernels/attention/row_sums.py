"""Row sums of float32 attention that is recomputed from its log-sum-exp, which are 1 up to rounding.

At a logit of 1,420 float32 rounds a log-sum-exp by up to 6e-5, and its conversion to base 2 by as much, so every weight
of a row has the same relative error. Saliency, flow and the gradients of keys and values are linear in a row of dO, so
dividing dO by the row's sum corrects them, without a change to their kernels. Half precision needs no correction.

For each kernel that uses the sums, they cost one more product q kᵀ and a copy of dO. Without them, the backward pass
has seven products (dq needs no sums unless it sums flow), and saliency and flow have two.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from symground.kernels.attention.launch import Call
from symground.kernels.attention.mixing import attention_of, load_gate, load_lse2, load_slope
from symground.kernels.common.configs import Config
from symground.kernels.common.launch import Launch, cdiv
from symground.kernels.common.masks import keys_of, load_range, seen
from symground.kernels.common.tiles import LOG2E, load_tile, product

#: As a multiple of 1 + |lse|: the most by which rounding can move a row's sum from 1, 32 units in the last place.
ROUNDING = tl.constexpr(32 * 2.0**-23)


@triton.jit(do_not_specialize=["window", "R", "H", "T", "S"])
def attention_row_sums_kernel(
    p_q, p_k, p_lse, p_gate, p_slopes, p_range, p_segments, p_blocks, p_sink, p_rows, p_sums,
    s_qb, s_qh, s_qt, s_qd, s_kb, s_kh, s_kt, s_kd,
    scale, softcap, window, R, H, T, S,
    FROM_FORWARD: tl.constexpr, KEYS_FIRST: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
    CHUNK_V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sums [B,H,R], contiguous, of the queries in rows [B,R]; T means no query. Grid: tiles of rows × H × B.

    A logit is rounded as in the kernel that uses the sum: with the same tiles, CHUNK and order of operands.
    """
    n_r = tl.cdiv(R, BM)
    i_program = tl.program_id(0)
    i_h = (i_program // n_r % H).to(tl.int64)
    i_b = (i_program // n_r // H).to(tl.int64)
    o_r = i_program % n_r * BM + tl.arange(0, BM)
    o_i = tl.load(p_rows + i_b * R + o_r, mask=o_r < R, other=T).to(tl.int32)
    o_i = tl.where(o_i >= 0, o_i, T)
    first_i, last_i = tl.min(o_i, 0), tl.max(tl.where(o_i < T, o_i, -1), 0) + 1
    low, high = load_range(p_range, i_b, S)
    mask = (S - T, low, high, window, p_segments, p_blocks, i_b * 2 * S, S)
    offset = S - T
    start, _, _, end = keys_of(first_i, last_i, o_i, mask, CAUSAL, BN)
    if (last_i == 0) | (load_gate(p_gate, i_b, i_h, H) == 0.0):
        start, end = 0, 0
    how = (scale, softcap, p_slopes, load_slope(p_slopes, i_h))
    q = (p_q + i_b * s_qb + i_h * s_qh, s_qt, s_qd, 0, T)
    k = (p_k + i_b * s_kb + i_h // GROUP * s_kh, s_kt, s_kd, low, high)
    b_q = load_tile(q, o_i, D, BLOCK_D, True)  # [BM,D]
    b_lse = load_lse2(p_lse + (i_b * H + i_h) * T, o_i, T)
    b_sum = tl.zeros([BM], tl.float32)
    for j in tl.range(start, end, BN, disable_licm=CHUNK < BLOCK_D):
        o_j = j + tl.arange(0, BN)
        b_k = load_tile(k, o_j, D, BLOCK_D, True)  # [BN,D]
        if KEYS_FIRST:
            b_s = tl.trans(product(b_k, b_q, k, q, o_j, o_i, D, BLOCK_D, CHUNK, PRECISION))  # [BM,BN]
        else:
            b_s = product(b_q, b_k, q, k, o_i, o_j, D, BLOCK_D, CHUNK, PRECISION)  # [BM,BN]
        b_p = attention_of(b_s, b_lse[:, None], o_i[:, None], o_j[None, :], offset, how)
        b_sum += tl.sum(tl.where(seen(o_i[:, None], o_j[None, :], mask, CAUSAL), b_p, 0.0), 1)
    if p_sink is not None:
        b_sum += tl.exp2(tl.load(p_sink + i_h) * LOG2E - b_lse)
    # The constant stands last: with it first, Triton 3.8's interpreter makes a constant of the product.
    b_level = tl.minimum((1.0 + tl.abs(b_lse)) * ROUNDING, 0.5)
    m_rounded = b_sum > 0.0 if FROM_FORWARD else tl.abs(b_sum - 1.0) <= b_level
    b_sum = tl.where(m_rounded, b_sum, 1.0)
    tl.store(p_sums + (i_b * H + i_h) * R + o_r, b_sum, mask=o_r < R)


def row_sums(
    call: Call,
    config: Config,
    lse: torch.Tensor,
    rows: torch.Tensor,
    *,
    chunk: int | None = None,
    keys_first: bool = False,
    from_forward: bool = False,
) -> torch.Tensor:
    """[B,H,R] of queries ``rows`` [B,R]; 1 if ``lse`` is not that of these keys, unless ``from_forward``.

    ``config``, ``chunk`` and ``keys_first`` are those of the kernel that uses the sums. ``from_forward``: lse comes
    from the forward pass; an lse from a caller may be that of more keys.
    """
    sums = torch.empty(call.B, call.H, rows.shape[1], dtype=torch.float32, device=lse.device)
    R = rows.shape[1]

    def prepared() -> Launch:
        fixed = {**call.fixed, "CHUNK": chunk or call.fixed["CHUNK"], **config.kwargs}
        return Launch(
            attention_row_sums_kernel, (cdiv(R, config.BM) * call.H * call.B,),
            (*call.strides[:8], *call.sizes[:3], R, *call.sizes[3:]), FROM_FORWARD=from_forward, KEYS_FIRST=keys_first,
            **fixed,
        )  # fmt: skip

    launch = call.once(("row_sums", config, R, chunk, keys_first, from_forward), prepared)
    launch(call.q, call.k, lse, *call.given, call.sink, rows, sums)
    return sums


def normalized(
    call: Call,
    config: Config,
    lse: torch.Tensor,
    *of_rows: torch.Tensor,
    wanted: torch.Tensor | None = None,
    **how: Any,
) -> tuple[torch.Tensor, ...]:
    """``of_rows``, each [B,H,T] or [B,H,T,D], divided by their row sums in float32; unchanged in half precision.

    ``wanted`` [B,T] bool: other rows stay unchanged, and a tile of them costs nothing.
    """
    if call.q.dtype != torch.float32:
        return of_rows
    rows = torch.arange(call.T, device=lse.device).repeat(call.B, 1)
    if wanted is not None:
        rows = torch.where(wanted, rows, call.T)
    sums = row_sums(call, config, lse, rows, **how)
    return tuple(x / (sums if x.ndim == 3 else sums[..., None]) for x in of_rows)
