"""What is read off attention weights A from (q, k, LSE): sums of columns, numbers of each row, sums over blocks.

A program of `attention_weights` loops over the keys of a tile of queries of one head, and reads everything off the same
tile of A, so that it costs one product. It keeps the numbers of its rows in registers, and stores the sums of its
columns as its own part; the parts are added afterwards in a fixed order.
A program of `attention_pooled` has a tile of blocks, and stores one number of each.
"""

from functools import partial

import torch
import triton
import triton.language as tl

from symground.kernels.attention.launch import Call
from symground.kernels.attention.mixing import attention_of, bent, left_of, load_lse2, load_slope
from symground.kernels.attention.row_sums import normalized
from symground.kernels.common.configs import Config, Tiles
from symground.kernels.common.launch import Launch, cdiv, config_of, power_of_2
from symground.kernels.common.masks import keys_of, load_range, seen
from symground.kernels.common.tiles import LN2, load_tile, product

#: Config(BM, BN, warps, stages) by architecture and element size, then by the largest BLOCK_D (`common/configs.py`).
TILES: dict[str, Tiles] = {
    # Each warp has rows of its own, but where registers do not do: what is read of a row that two share is slower.
    "attention_weights": {
        ("sm_80", 2): {64: Config(128, 32, 4, 3), 256: Config(64, 32, 2, 2)},
        ("sm_80", 4): {64: Config(64, 16, 4, 2), 128: Config(32, 16, 2, 1), 256: Config(16, 32, 4, 1)},
        ("sm_86", 2): {64: Config(128, 32, 4, 3), 256: Config(64, 32, 2, 2)},
        ("sm_86", 4): {64: Config(64, 16, 4, 2), 128: Config(32, 16, 2, 1), 256: Config(16, 32, 4, 1)},
        ("sm_90", 2): {64: Config(128, 64, 4, 2), 256: Config(128, 32, 4, 2)},
        ("sm_90", 4): {128: Config(64, 32, 4, 2), 256: Config(64, 32, 4, 1)},
        ("sm_100", 2): {256: Config(128, 32, 4, 2)},
        ("sm_100", 4): {64: Config(64, 32, 4, 2), 128: Config(32, 16, 2, 1), 256: Config(16, 32, 4, 1)},
        ("gfx942", 2): {128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        ("gfx942", 4): {128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
        ("sm_80, lighter", 2): {64: Config(128, 16, 4, 2), 256: Config(64, 16, 4, 1)},
        ("sm_86, lighter", 2): {64: Config(128, 16, 4, 2), 256: Config(64, 16, 4, 1)},
        ("sm_90, lighter", 2): {64: Config(128, 32, 4, 2), 256: Config(128, 16, 4, 2)},
        ("sm_90, lighter", 4): {128: Config(64, 16, 4, 2), 256: Config(64, 16, 4, 1)},
        ("sm_100, lighter", 2): {256: Config(128, 16, 4, 2)},
        ("sm_100, lighter", 4): {64: Config(64, 16, 4, 2)},
    },
    "attention_pooled": {
        ("cuda", 2): {256: Config(64, 64, 4, 1)},
        ("cuda", 4): {64: Config(32, 32, 4, 1), 128: Config(32, 16, 4, 1), 256: Config(16, 64, 8, 1)},
        ("gfx942", 2): {256: Config(32, 32, 4, 1)},
        ("gfx942", 4): {256: Config(16, 16, 4, 1)},
    },
}  # fmt: skip


#: Numbers in the parts that are allocated at a time: longer sequences are processed in chunks of query tiles.
PARTS = 2**25
#: Minus the logarithm of a weight that is 0: finite, so that 0 · log 0 is 0.
FAR = tl.constexpr(1e30)
#: Beyond every key.
NO_KEY = tl.constexpr(2**31 - 1)
#: The most groups of queries that a program sums; if there are more, they are processed in blocks.
MOST_GROUPS = 4


@triton.jit
def _by_lane(x):
    """[rows, columns] → [rows, 4, columns / 4]: a result of NVIDIA's tensor cores has a row in four threads of a warp.

    So the last dimension stays in its thread.
    """
    x = tl.permute(tl.reshape(x, [x.shape[0], x.shape[1] // 8, 4, 2]), (0, 2, 1, 3))
    return tl.reshape(x, [x.shape[0], 4, x.shape[2] * 2])


@triton.jit
def _halves(x):
    """The first and the last half of [rows, 4, columns]."""
    return tl.split(tl.permute(tl.reshape(x, [x.shape[0], 4, 2, x.shape[2] // 2]), (0, 1, 3, 2)))


@triton.jit
def _through_columns(b_entropy, b_distance, b_best, b_key, b_p, b_log, b_s, b_at, o_j):
    """Numbers of rows [rows, 4, 1] from [rows, 4, columns], one column after the other, which are those of a thread.

    So a sum is one multiply-add of each weight, and of equal scores the first stays the best.
    """
    if b_p.shape[2] > 1:
        b_p, b_p2 = _halves(b_p)
        b_log, b_log2 = _halves(b_log)
        b_s, b_s2 = _halves(b_s)
        o_j, o_j2 = _halves(o_j)
        b_entropy, b_distance, b_best, b_key = _through_columns(
            b_entropy, b_distance, b_best, b_key, b_p, b_log, b_s, b_at, o_j
        )
        b_entropy, b_distance, b_best, b_key = _through_columns(
            b_entropy, b_distance, b_best, b_key, b_p2, b_log2, b_s2, b_at, o_j2
        )
    else:
        b_entropy -= b_p * b_log
        b_distance += b_p * (b_at - o_j.to(tl.float32))
        b_key = tl.where(b_s > b_best, o_j, b_key)
        b_best = tl.maximum(b_best, b_s)
    return b_entropy, b_distance, b_best, b_key


@triton.jit
def _added(x):
    """[n, a power of 2] → [n]. What is split is brought into one thread, through shared memory in one step."""
    if x.shape[1] > 1:
        b_even, b_odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
        x = _added(b_even + b_odd)
    else:
        x = tl.reshape(x, [x.shape[0]])
    return x


@triton.jit
def _columns_sum(x):
    """[rows, columns] → [columns], with few shuffles: of a tensor core's result four warps have 16 rows each in turn.

    Of these a thread has every eighth. It adds up its own first; then the eight threads' sums go to one.
    """
    WARPS: tl.constexpr = min(4, x.shape[0] // 16)
    COLUMNS: tl.constexpr = x.shape[1]
    x = tl.reshape(x, [x.shape[0] // (16 * WARPS), WARPS, 2, 8, COLUMNS])
    x = tl.permute(tl.sum(tl.sum(x, 2), 0), (2, 0, 1))  # [COLUMNS,WARPS,8]
    return tl.sum(tl.reshape(_added(tl.reshape(x, [COLUMNS * WARPS, 8])), [COLUMNS, WARPS]), 1)


@triton.jit
def _read_through(
    b_entropy, b_distance, b_best, b_key, b_q, b_lse, b_more, b_group, low_group, high_group, q, k, p_received, columns,
    start, end, o_i, how, mask,
    MASKED: tl.constexpr, SUMMARY: tl.constexpr, GROUPS: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Read keys [start, end). ``b_key`` is the first key with the largest score so far, ``b_best``."""
    b_at = (o_i + mask[0]).to(tl.float32)[:, None, None]
    for j in range(start, end, BN):
        o_j = j + tl.arange(0, BN)
        b_k = load_tile(k, o_j, D, BLOCK_D, MASKED)  # [BN,D]
        b_s = product(b_q, b_k, q, k, o_i, o_j, D, BLOCK_D, CHUNK, PRECISION)  # [BM,BN]
        b_s = bent(b_s, o_i[:, None], o_j[None, :], mask[0], how)
        b_log = b_s * left_of(how) - b_lse[:, None]  # of A, in base 2
        if b_more is not None:
            b_log += b_more[:, None]
        if MASKED:
            m_seen = seen(o_i[:, None], o_j[None, :], mask, CAUSAL)
            b_s = tl.where(m_seen, b_s, float("-inf"))
            b_log = tl.where(m_seen, b_log, -FAR)
        b_p = tl.exp2(b_log)
        if SUMMARY:
            b_entropy, b_distance, b_best, b_key = _through_columns(
                b_entropy, b_distance, b_best, b_key, _by_lane(b_p), _by_lane(b_log), _by_lane(b_s), b_at,
                _by_lane(o_j[None, :]),
            )  # fmt: skip
        if p_received is not None:
            for g in tl.static_range(GROUPS):
                b_in = b_p
                if b_group is not None:
                    b_in = b_p * (b_group == g).to(tl.float32)[:, None]  # a product is less work than a choice
                if (low_group <= g) & (g <= high_group):
                    p_group = p_received + tl.cast(g, tl.int64) * columns
                    tl.store(p_group + o_j, _columns_sum(b_in), mask=o_j < columns)
    return b_entropy, b_distance, b_best, b_key


@triton.jit(do_not_specialize=["num_groups", "columns", "window", "first_tile", "n_i", "H", "T", "S"])
def attention_weights_kernel(
    p_q, p_k, p_lse, p_inverse, p_gate, p_slopes, p_range, p_segments, p_blocks, p_groups,
    p_received, p_entropy, p_weight, p_key, p_score, p_distance, num_groups, columns,
    s_qb, s_qh, s_qt, s_qd, s_kb, s_kh, s_kt, s_kd,
    scale, softcap, window, first_tile, n_i, H, T, S,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, CHUNK_V: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Parts [B,H,n_i,G,columns] of what keys receive, which were 0, and numbers of each row [B,H,T], contiguous.

    Grid: (n_i query tiles from first_tile, the last, the longest, first, × H × B, blocks of GROUPS groups).
    """
    i_program = tl.program_id(0)
    i_h = (i_program // n_i % H).to(tl.int64)
    i_b = (i_program // n_i // H).to(tl.int64)
    first_group = tl.program_id(1) * GROUPS
    first_i = (first_tile + n_i - 1 - i_program % n_i) * BM
    o_i = first_i + tl.arange(0, BM)
    low, high = load_range(p_range, i_b, S)
    mask = (S - T, low, high, window, p_segments, p_blocks, i_b * 2 * S, S)
    how = (scale, softcap, p_slopes, load_slope(p_slopes, i_h))
    start, full_first, full_last, end = keys_of(first_i, first_i + BM, o_i, mask, CAUSAL, BN)
    SUMMARY: tl.constexpr = p_entropy is not None
    low_group, high_group, b_group = 0, 0, None
    if p_groups is not None:
        b_group = tl.load(p_groups + i_b * T + o_i, mask=o_i < T, other=-1).to(tl.int32) - first_group
        m_in = (b_group >= 0) & (b_group < GROUPS)
        low_group = tl.min(tl.where(m_in, b_group, GROUPS), 0)
        high_group = tl.max(tl.where(m_in, b_group, -1), 0)
        if (high_group < 0) & (not SUMMARY or first_group > 0):
            start, full_first, full_last, end = 0, 0, 0, 0
    if p_received is not None:
        p_received += (i_program.to(tl.int64) * num_groups + first_group) * columns
    q = (p_q + i_b * s_qb + i_h * s_qh, s_qt, s_qd, 0, T)
    k = (p_k + i_b * s_kb + i_h // GROUP * s_kh, s_kt, s_kd, low, high)
    b_q = load_tile(q, o_i, D, BLOCK_D, True)  # [BM,D]
    row = (i_b * H + i_h) * T
    b_lse = tl.minimum(load_lse2(p_lse + row, o_i, T), FAR)
    b_more = None
    if p_inverse is not None:
        b_more = tl.log2(tl.load(p_inverse + row + o_i, mask=o_i < T, other=1.0))
    b_entropy = tl.zeros([BM, 4, 1], tl.float32)
    b_distance = tl.zeros([BM, 4, 1], tl.float32)
    b_best = tl.full([BM, 4, 1], float("-inf"), tl.float32)
    b_key = tl.full([BM, 4, 1], NO_KEY, tl.int32)
    if p_range is not None or window is not None:
        b_entropy, b_distance, b_best, b_key = _read_through(
            b_entropy, b_distance, b_best, b_key, b_q, b_lse, b_more, b_group, low_group, high_group, q, k, p_received,
            columns, start, full_first, o_i, how, mask, True, SUMMARY, GROUPS, CAUSAL, D, BLOCK_D, CHUNK, BN,
            PRECISION,
        )  # fmt: skip
    b_entropy, b_distance, b_best, b_key = _read_through(
        b_entropy, b_distance, b_best, b_key, b_q, b_lse, b_more, b_group, low_group, high_group, q, k, p_received,
        columns, full_first, full_last, o_i, how, mask, False, SUMMARY, GROUPS, CAUSAL, D, BLOCK_D, CHUNK, BN,
        PRECISION,
    )  # fmt: skip
    b_entropy, b_distance, b_best, b_key = _read_through(
        b_entropy, b_distance, b_best, b_key, b_q, b_lse, b_more, b_group, low_group, high_group, q, k, p_received,
        columns, full_last, end, o_i, how, mask, True, SUMMARY, GROUPS, CAUSAL, D, BLOCK_D, CHUNK, BN, PRECISION,
    )  # fmt: skip
    if SUMMARY:
        m_row = o_i < tl.where(first_group == 0, T, 0)  # the programs of other groups find the same
        b_best, b_key = tl.reshape(b_best, [BM, 4]), tl.reshape(b_key, [BM, 4])
        b_top = tl.max(b_best, 1)
        b_first = tl.min(tl.where(b_best == b_top[:, None], b_key, NO_KEY), 1)
        b_top *= left_of(how)
        b_weight = b_top - b_lse
        if b_more is not None:
            b_weight += b_more
        tl.store(p_entropy + row + o_i, tl.sum(tl.reshape(b_entropy, [BM, 4]), 1) * LN2, mask=m_row)
        tl.store(p_weight + row + o_i, tl.exp2(b_weight), mask=m_row)
        tl.store(p_key + row + o_i, tl.where(b_first == NO_KEY, -1, b_first).to(tl.int64), mask=m_row)
        tl.store(p_score + row + o_i, b_top * LN2, mask=m_row)
        tl.store(p_distance + row + o_i, tl.sum(tl.reshape(b_distance, [BM, 4]), 1), mask=m_row)


@triton.jit(do_not_specialize=["window", "H", "T", "S"])
def attention_pooled_kernel(
    p_q, p_k, p_lse, p_inverse, p_gate, p_slopes, p_range, p_segments, p_blocks, p_pooled,
    s_qb, s_qh, s_qt, s_qd, s_kb, s_kh, s_kt, s_kd,
    scale, softcap, window, H, T, S,
    SIDE: tl.constexpr, WIDE: tl.constexpr, LARGEST: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
    CHUNK_V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """pooled [B,H,⌈T/SIDE⌉,⌈S/SIDE⌉], contiguous. Grid: tiles of blocks, the last index first, × H × B.

    ``WIDE`` is SIDE rounded up to a power of two. Each block has WIDE rows and columns of a tile, of which those from
    SIDE on are masked, or the whole tile, which then goes through the block.
    """
    ROWS: tl.constexpr = min(WIDE, BM)  # of a block in a tile
    COLUMNS: tl.constexpr = min(WIDE, BN)
    high_a, high_b = tl.cdiv(T, SIDE), tl.cdiv(S, SIDE)
    n_a, n_b = tl.cdiv(high_a, BM // ROWS), tl.cdiv(high_b, BN // COLUMNS)
    i_program = tl.program_id(0)
    first_b = i_program % n_b * (BN // COLUMNS)
    first_a = i_program // n_b % n_a * (BM // ROWS)
    i_h = (i_program // n_b // n_a % H).to(tl.int64)
    i_b = (i_program // n_b // n_a // H).to(tl.int64)
    low, high = load_range(p_range, i_b, S)
    mask = (S - T, low, high, window, p_segments, p_blocks, i_b * 2 * S, S)
    how = (scale, softcap, p_slopes, load_slope(p_slopes, i_h))
    q = (p_q + i_b * s_qb + i_h * s_qh, s_qt, s_qd, 0, T)
    k = (p_k + i_b * s_kb + i_h // GROUP * s_kh, s_kt, s_kd, low, high)
    row = (i_b * H + i_h) * T
    o_m, o_n = tl.arange(0, BM), tl.arange(0, BN)
    b_total = tl.zeros([BM, BN], tl.float32)
    for u in range(0, SIDE, ROWS):
        o_i = (first_a + o_m // ROWS) * SIDE + u + o_m % ROWS
        o_i = tl.where(u + o_m % ROWS < SIDE, tl.minimum(o_i, T), T)  # T is no query: nothing is read
        last_i = tl.max(tl.where(o_i < T, o_i, -1), 0) + 1
        start, _, _, end = keys_of(tl.min(o_i, 0), last_i, o_i, mask, CAUSAL, 1)
        for w in range(0, SIDE, COLUMNS):
            o_j = (first_b + o_n // COLUMNS) * SIDE + w + o_n % COLUMNS
            o_j = tl.where(w + o_n % COLUMNS < SIDE, tl.minimum(o_j, S), S)
            last_j = tl.max(tl.where(o_j < S, o_j, -1), 0) + 1
            if (tl.min(o_j, 0) < end) & (last_j > start):
                b_q = load_tile(q, o_i, D, BLOCK_D, True)  # [BM,D]
                b_k = load_tile(k, o_j, D, BLOCK_D, True)  # [BN,D]
                b_lse = load_lse2(p_lse + row, o_i, T)
                b_s = product(b_q, b_k, q, k, o_i, o_j, D, BLOCK_D, CHUNK, PRECISION)  # [BM,BN]
                b_p = attention_of(b_s, b_lse[:, None], o_i[:, None], o_j[None, :], S - T, how)
                if p_inverse is not None:
                    b_p *= tl.load(p_inverse + row + o_i, mask=o_i < T, other=1.0)[:, None]
                b_p = tl.where(seen(o_i[:, None], o_j[None, :], mask, CAUSAL), b_p, 0.0)
                b_total = tl.maximum(b_total, b_p) if LARGEST else b_total + b_p
    b_total = tl.reshape(b_total, [BM // ROWS, ROWS, BN // COLUMNS, COLUMNS])
    b_total = tl.max(tl.max(b_total, 3), 1) if LARGEST else tl.sum(tl.sum(b_total, 3), 1)
    o_a, o_b = first_a + tl.arange(0, BM // ROWS), first_b + tl.arange(0, BN // COLUMNS)
    p_tile = p_pooled + ((i_b * H + i_h) * high_a + o_a)[:, None] * high_b + o_b[None, :]
    tl.store(p_tile, b_total, mask=(o_a < high_a)[:, None] & (o_b < high_b)[None, :])


def attention_weights(
    call: Call, lse: torch.Tensor, query_groups: torch.Tensor | None, num_groups: int, summary: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What keys receive [B,H,G,S]; with ``summary`` entropy, weight, key, score and distance [B,H,T], else nothing.

    float32, but key, which is int64. G is ``num_groups``; ``query_groups`` [B,T] of None is one group of all queries.
    """
    lse, groups = lse.contiguous(), None if query_groups is None else query_groups.contiguous()
    of_rows = [torch.empty_like(lse, dtype=of) for of in _OF_ROWS] if summary else []
    wanted = None if summary or groups is None else groups >= 0
    received = torch.zeros(call.B, call.H, num_groups, call.S, dtype=torch.float32, device=lse.device)
    (q, scale), offset = _ascending(call), call.S - call.T
    of_program = max(1, min(MOST_GROUPS, num_groups))

    def prepared(config: Config, first: int, n_i: int, columns: int) -> Launch:
        numbers = (num_groups, columns, *q.stride(), *call.strides[4:8], scale, *call.sizes[1:3], first, n_i)
        return Launch(
            attention_weights_kernel, (n_i * call.H * call.B, max(1, cdiv(num_groups, of_program))),
            (*numbers, *call.sizes[3:]), GROUPS=of_program, **call.fixed, **config.kwargs,
        )  # fmt: skip

    def run(config: Config) -> None:
        tiles = cdiv(call.T, config.BM)
        inverse = _inverse(call, config, lse, wanted)
        together = tiles
        if num_groups:
            together = max(1, min(tiles, PARTS // (call.B * call.H * num_groups * call.S)))
        received.zero_()  # where configurations are measured, this is not the first
        for first in range(0, tiles, together):
            n_i, columns = min(together, tiles - first), call.S
            if call.causal and call.given[4] is None:  # without blocks, queries see no further
                columns = max(0, min(call.S, (first + n_i) * config.BM + offset))
            parts = None
            if num_groups:
                parts = received.new_zeros(call.B, call.H, n_i, num_groups, columns)
            key = ("weights", config, num_groups, groups is None, summary, first, n_i, q.stride())
            launch = call.once(key, partial(prepared, config, first, n_i, columns))
            launch(q, call.k, lse, inverse, *call.given, groups, parts, *(of_rows or (None,) * len(_OF_ROWS)))
            if parts is not None:
                received[..., :columns] += parts.sum(2)

    if summary or num_groups:
        run(config_of("attention_weights", TILES, q, call, run, call.bends))
    return received, of_rows


#: The dtypes of what is found of each row: entropy, weight, key, score, distance.
_OF_ROWS = (torch.float32, torch.float32, torch.int64, torch.float32, torch.float32)


def attention_pooled(call: Call, lse: torch.Tensor, block: int, largest: bool) -> torch.Tensor:
    """Sums, or if ``largest`` maxima, of A over blocks: [B,H,⌈T/block⌉,⌈S/block⌉] float32."""
    side, lse = min(block, max(call.T, call.S)), lse.contiguous()
    wide = power_of_2(side)
    high = [cdiv(n, side) for n in (call.T, call.S)]
    pooled = torch.empty(call.B, call.H, *high, dtype=torch.float32, device=lse.device)

    def run(config: Config) -> None:
        inverse = _inverse(call, config, lse)

        def prepared() -> Launch:
            tiles = [cdiv(n, of // min(wide, of)) for n, of in zip(high, config[:2], strict=True)]
            return Launch(
                attention_pooled_kernel, (tiles[0] * tiles[1] * call.H * call.B,), (*call.strides[:8], *call.sizes),
                SIDE=side, WIDE=wide, LARGEST=largest, **call.fixed, **config.kwargs,
            )  # fmt: skip

        launch = call.once(("pooled", config, side, largest), prepared)
        launch(call.q, call.k, lse, inverse, *call.given, pooled)

    run(config_of("attention_pooled", TILES, call.q, call, run, call.bends))
    return pooled


def _ascending(call: Call) -> tuple[torch.Tensor, float]:
    """q and a scale above 0 with the same logits, so that a larger product is a larger logit."""
    if call.scale > 0:
        return call.q, call.scale
    return (-call.q, -call.scale) if call.scale else (torch.zeros_like(call.q), 1.0)


def _inverse(call: Call, config: Config, lse: torch.Tensor, wanted: torch.Tensor | None = None) -> torch.Tensor | None:
    """[B,H,T] in float32, what `normalized` makes of 1: the factor with which A's rows sum to 1."""
    if call.q.dtype != torch.float32:
        return None
    return normalized(call, config, lse, torch.ones_like(lse), wanted=wanted)[0]
