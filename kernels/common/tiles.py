"""Parts of every kernel: a tile is loaded, multiplied and stored.

Prefixes: p_ a pointer; s_ a stride, of q [B,H,T,D] s_qb, s_qh, s_qt and s_qd; i_ an index of this program; n_ a number
of programs; o_ offsets of a tile's rows or columns; m_ a mask; b_ a tile in registers, with its shape beside it.
A matrix in memory, [rows, D], is the tuple (pointer, row stride, column stride, first row, one past the last).
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)  # exp2 is the hardware's exponential
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_tile(x, o_row, D: tl.constexpr, BLOCK_D: tl.constexpr, BOUNDED: tl.constexpr, first_d=None):
    """Rows ``o_row`` of a matrix → [len(o_row), BLOCK_D]; outside its rows and beyond D, 0 without a read.

    ``first_d`` is the first of the columns, if not column 0.
    """
    p_x, s_row, s_col, first, last = x
    o_d = tl.arange(0, BLOCK_D)
    if first_d is not None:
        o_d += first_d
    p_tile = p_x + o_row.to(tl.int64)[:, None] * s_row + o_d[None, :] * s_col
    COLUMNS: tl.constexpr = D < BLOCK_D or first_d is not None
    if BOUNDED:
        m_row = ((o_row >= first) & (o_row < last))[:, None]
        if COLUMNS:
            m_row = m_row & (o_d < D)[None, :]
        b_x = tl.load(p_tile, mask=m_row, other=0.0)
    elif COLUMNS:
        b_x = tl.load(p_tile, mask=(o_d < D)[None, :], other=0.0)
    else:
        b_x = tl.load(p_tile)
    return b_x


@triton.jit
def rows_once(rows, first_d):
    """``rows`` for the program of the first columns and 0 for the others, which would store the same again.

    A result [rows, D] wider than a tile has several programs along axis 1 of the grid, each with its ``first_d``.
    """
    if first_d is not None:
        rows = tl.where(first_d == 0, rows, 0)
    return rows


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
def store_tile(p_x, o_row, s_row, b_x, rows, D: tl.constexpr, BLOCK_D: tl.constexpr, first_d=None):
    """Store [len(o_row), BLOCK_D] into rows < ``rows`` of a matrix [rows, D] with contiguous rows.

    ``first_d`` is the first of the columns, if not column 0.
    """
    o_d = tl.arange(0, BLOCK_D)
    if first_d is not None:
        o_d += first_d
    p_tile = p_x + o_row.to(tl.int64)[:, None] * s_row + o_d[None, :]
    tl.store(p_tile, b_x.to(p_x.dtype.element_ty), mask=(o_row < rows)[:, None] & (o_d < D)[None, :])


@triton.jit
def load_part(x, o_row, o_col, columns):
    """Rows ``o_row`` and columns ``o_col`` of a matrix with ``columns`` columns; outside it, 0 without a read."""
    p_x, s_row, s_col, first, last = x
    m_part = ((o_row >= first) & (o_row < last))[:, None] & (o_col < columns)[None, :]
    return tl.load(p_x + o_row.to(tl.int64)[:, None] * s_row + o_col[None, :] * s_col, mask=m_part, other=0.0)
