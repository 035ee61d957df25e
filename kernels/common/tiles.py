"""Parts of every kernel: loading a tile, which keys a query sees, and the bounds of a loop over them.

Prefixes: p_ a pointer; s_ a stride, of q [B,H,T,D] s_qb, s_qh, s_qt and s_qd; i_ an index of this program; n_ a number
of programs; o_ offsets of a tile's rows or columns; m_ a mask; b_ a tile in registers, with its shape beside it.
A matrix in memory, [rows, D], is the tuple (pointer, row stride, column stride, first row, one past the last).
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)  # exp2 is the hardware's exponential
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_tile(x, o_row, D: tl.constexpr, BLOCK_D: tl.constexpr, BOUNDED: tl.constexpr):
    """Rows ``o_row`` of a matrix → [len(o_row), BLOCK_D]; outside its rows and beyond D, 0 without a read."""
    p_x, s_row, s_col, first, last = x
    o_d = tl.arange(0, BLOCK_D)
    p_tile = p_x + o_row.to(tl.int64)[:, None] * s_row + o_d[None, :] * s_col
    if BOUNDED:
        m_row = ((o_row >= first) & (o_row < last))[:, None]
        if D < BLOCK_D:
            m_row = m_row & (o_d < D)[None, :]
        b_x = tl.load(p_tile, mask=m_row, other=0.0)
    elif D < BLOCK_D:
        b_x = tl.load(p_tile, mask=(o_d < D)[None, :], other=0.0)
    else:
        b_x = tl.load(p_tile)
    return b_x


@triton.jit
def product_in_chunks(x, y, o_x, o_y, D: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """Rows o_x of x by rows o_y of y → [len(o_x), len(o_y)], CHUNK columns at a time: neither tile must fit whole."""
    p_x, s_x, s_xd, first_x, last_x = x
    p_y, s_y, s_yd, first_y, last_y = y
    b_xy = tl.zeros([o_x.shape[0], o_y.shape[0]], tl.float32)
    for c in tl.static_range(0, D, CHUNK):
        b_x = load_tile((p_x + c * s_xd, s_x, s_xd, first_x, last_x), o_x, D - c, CHUNK, True)  # [len(o_x),CHUNK]
        b_y = load_tile((p_y + c * s_yd, s_y, s_yd, first_y, last_y), o_y, D - c, CHUNK, True)  # [len(o_y),CHUNK]
        b_xy = tl.dot(b_x, tl.trans(b_y), b_xy, input_precision=PRECISION)
    return b_xy


@triton.jit
def product(
    b_x, b_y, x, y, o_x, o_y, D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr
):
    """b_x b_yᵀ, of rows o_x of x and o_y of y. With CHUNK < BLOCK_D it reads both in chunks again, from the caches.

    It then does not use b_x and b_y, and a tile that nothing else uses is never loaded.
    """
    if CHUNK < BLOCK_D:
        b_xy = product_in_chunks(x, y, o_x, o_y, D, CHUNK, PRECISION)
    else:
        b_xy = tl.dot(b_x, tl.trans(b_y), input_precision=PRECISION)
    return b_xy


@triton.jit
def store_tile(p_x, o_row, s_row, b_x, rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store [len(o_row), BLOCK_D] into rows < ``rows`` of a matrix [rows, D] with contiguous rows."""
    o_d = tl.arange(0, BLOCK_D)
    p_tile = p_x + o_row.to(tl.int64)[:, None] * s_row + o_d[None, :]
    tl.store(p_tile, b_x.to(p_x.dtype.element_ty), mask=(o_row < rows)[:, None] & (o_d < D)[None, :])


@triton.jit
def seen(o_i, o_j, offset, low, high, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Whether query o_i sees key o_j. The two broadcast, so either may be the rows."""
    m_seen = (o_j >= low) & (o_j < high) & (o_i == o_i)
    if CAUSAL:
        m_seen = m_seen & (o_j <= o_i + offset)
    if WINDOW:
        m_seen = m_seen & (o_j > o_i + offset - window)
    return m_seen


@triton.jit
def keys_of(first_i, last_i, offset, low, high, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BN: tl.constexpr):
    """Bounds of the keys that queries [first_i, last_i) see: start, full start, full end, end.

    Start and the full bounds are multiples of BN. Within the full bounds every query sees every key, so no mask is
    needed; the rest of [start, end) needs one.
    """
    first, last, full_first, full_last = low, high, low, high
    if CAUSAL:
        last = tl.minimum(high, last_i + offset)
        full_last = tl.minimum(high, first_i + offset + 1)
    if WINDOW:
        first = tl.maximum(low, first_i + offset - window + 1)
        full_first = tl.maximum(low, last_i + offset - window)
    start = first // BN * BN
    full_first = (full_first + BN - 1) // BN * BN
    full_last = tl.maximum(full_last, 0) // BN * BN
    if full_last <= full_first:
        full_first = start
        full_last = start
    return start, full_first, full_last, last


@triton.jit
def queries_of(
    first_j, last_j, offset, low, high, window, T, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr
):
    """Bounds of the queries that see any of keys [first_j, last_j), as `keys_of` gives bounds of keys."""
    first, last, full_first, full_last = 0, T, 0, T
    if CAUSAL:
        first = tl.maximum(0, first_j - offset)
        full_first = tl.maximum(0, last_j - 1 - offset)
    if WINDOW:
        last = tl.minimum(T, last_j - 1 - offset + window)
        full_last = tl.minimum(T, first_j - offset + window)
    start = first // BM * BM
    full_first = (full_first + BM - 1) // BM * BM
    full_last = tl.maximum(full_last, 0) // BM * BM
    if (full_last <= full_first) | (first_j < low) | (last_j > high):
        full_first = start
        full_last = start
    if (last_j <= low) | (first_j >= high):  # no key of the tile is valid
        last = start
    return start, full_first, full_last, last


@triton.jit
def load_range(p_range, i_b, S, HAS_RANGE: tl.constexpr):
    """First and one-past-last valid key of example i_b, clamped to [0, S]."""
    low, high = 0, S
    if HAS_RANGE:
        low = tl.maximum(tl.load(p_range + i_b * 2).to(tl.int32), 0)
        high = tl.minimum(tl.load(p_range + i_b * 2 + 1).to(tl.int32), S)
    return low, high


@triton.jit
def load_gate(p_gate, i_b, i_h, H, HAS_GATE: tl.constexpr):
    """The gate of head i_h in example i_b, from [B,H]."""
    gate = 1.0
    if HAS_GATE:
        gate = tl.load(p_gate + i_b * H + i_h)
    return gate


@triton.jit
def load_part(x, o_row, o_col, columns):
    """Rows ``o_row`` and columns ``o_col`` of a matrix with ``columns`` columns; outside it, 0 without a read."""
    p_x, s_row, s_col, first, last = x
    m_part = ((o_row >= first) & (o_row < last))[:, None] & (o_col < columns)[None, :]
    return tl.load(p_x + o_row.to(tl.int64)[:, None] * s_row + o_col[None, :] * s_col, mask=m_part, other=0.0)


@triton.jit
def load_terms(p_terms, o_i, T, DECAY: tl.constexpr):
    """The queries' term of the mixing: the log-sum-exp for softmax; the decay, in two parts, for SSD."""
    if DECAY:
        b_high = tl.load(p_terms + o_i, mask=o_i < T, other=0.0)
        b_low = tl.load(p_terms + T + o_i, mask=o_i < T, other=0.0)
    else:
        b_high = load_lse2(p_terms, o_i, T)
        b_low = b_high
    return b_high, b_low


@triton.jit
def mixing(b_s, b_high, b_low, p_terms, o_j, T, S, scale, DECAY: tl.constexpr):
    """The mixing matrix's tile from its scores: A = exp2(s · scale - lse), or M = s · exp2(decay of i - decay of j).

    For SSD, p_terms is [4,T] in base 2: first the decay from the start as the sum of two float32 numbers, high and low,
    whose differences are exact where those of one float32 number are not; then this decay less log2 dt (+inf at dt 0).
    """
    if DECAY:
        p_from = p_terms + 2 * tl.cast(T, tl.int64)
        b_from = tl.load(p_from + o_j, mask=o_j < S, other=float("inf"))
        b_rest = tl.load(p_from + T + o_j, mask=o_j < S, other=0.0)
        b_x = (b_high[:, None] - b_from[None, :]) + (b_low[:, None] - b_rest[None, :])
        # Above the diagonal the exponent is positive. The result is masked, but must not be inf: inf · 0 is NaN.
        b_mixed = b_s * tl.exp2(tl.minimum(b_x, 64.0))
    else:
        b_mixed = tl.exp2(b_s * scale - b_high[:, None])
    return b_mixed


@triton.jit
def load_lse2(p_lse, o_i, T):
    """Base-2 log-sum-exp of queries o_i; +inf if there is none, so that exp2(s - inf) is 0 and never NaN."""
    b_lse = tl.load(p_lse + o_i, mask=o_i < T, other=float("-inf"))
    return tl.where(b_lse == float("-inf"), float("inf"), b_lse * LOG2E)
