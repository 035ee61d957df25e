"""Attention, forward: softmax(q kᵀ · scale) v by online softmax, with its log-sum-exp.

Source: Dao 2023 ("FlashAttention-2"), algorithm 1. A program loops over the keys of a tile of queries of one head.
"""

import torch
import triton
import triton.language as tl

from symground.kernels.attention.launch import Call
from symground.kernels.attention.mixing import bent, left_of, load_gate, load_slope
from symground.kernels.common.configs import Config, Tiles
from symground.kernels.common.launch import Launch, cdiv, config_of
from symground.kernels.common.masks import keys_of, load_range, seen
from symground.kernels.common.tiles import LN2, LOG2E, load_tile, product, rows_once, store_tile

#: Config(BM, BN, warps, stages) by architecture and element size, then by the largest BLOCK_D (`common/configs.py`).
TILES: dict[str, Tiles] = {
    "attention_forward": {
        ("sm_80", 2): {64: Config(128, 64, 4, 3), 128: Config(128, 32, 4, 2), 256: Config(64, 64, 8, 2)},
        ("sm_80", 4): {64: Config(128, 32, 8, 2), 128: Config(16, 16, 4, 1), 256: Config(32, 16, 8, 1)},
        ("sm_86", 2): {64: Config(64, 64, 4, 3), 128: Config(64, 32, 4, 2), 256: Config(32, 32, 4, 1)},
        ("sm_86", 4): {64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(32, 32, 8, 1)},
        ("sm_90", 2): {64: Config(128, 64, 8, 2), 128: Config(128, 128, 8, 3), 256: Config(128, 64, 8, 2)},
        ("sm_90", 4): {64: Config(128, 64, 8, 3), 128: Config(128, 32, 8, 2), 256: Config(32, 16, 8, 1)},
        ("sm_100", 2): {64: Config(128, 128, 8, 3), 128: Config(128, 128, 8, 3), 256: Config(128, 32, 8, 2)},
        ("sm_100", 4): {64: Config(128, 64, 8, 3), 128: Config(32, 32, 4, 2), 256: Config(32, 16, 8, 1)},
        ("gfx942", 2): {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        ("gfx942", 4): {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
        ("sm_86, lighter", 4): {256: Config(32, 16, 8, 1)},
        ("sm_100, lighter", 4): {64: Config(128, 32, 8, 2)},
    },
}  # fmt: skip


@triton.jit
def _attend(
    b_out, b_max, b_sum, b_q, q, k, v, start, end, o_i, how, mask, first_d,
    MASKED: tl.constexpr, VALUES: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Loop over keys [start, end). Without ``VALUES`` only the log-sum-exp is computed, for a head with gate 0."""
    factor = left_of(how)
    for j in range(start, end, BN):
        o_j = j + tl.arange(0, BN)
        b_k = load_tile(k, o_j, D, BLOCK_D, MASKED)  # [BN,D]
        b_s = product(b_q, b_k, q, k, o_i, o_j, D, BLOCK_D, CHUNK, PRECISION)  # [BM,BN]
        b_s = bent(b_s, o_i[:, None], o_j[None, :], mask[0], how)
        if MASKED:
            m_seen = seen(o_i[:, None], o_j[None, :], mask, CAUSAL)
            b_s = tl.where(m_seen, b_s * factor, float("-inf"))
            b_new = tl.maximum(b_max, tl.max(b_s, 1))  # [BM], base 2
            # The maximum of a row that has seen no key yet stays -inf: -inf - (-inf) would be NaN.
            b_top = tl.where(b_new == float("-inf"), 0.0, b_new)
            b_p = tl.exp2(b_s - b_top[:, None])
        else:
            # The factor is not negative, so it may follow the maximum: then each exponential takes one multiply-add.
            b_new = tl.maximum(b_max, tl.max(b_s, 1) * factor)
            b_top = b_new
            b_p = tl.exp2(b_s * factor - b_top[:, None])
        b_fade = tl.exp2(b_max - b_top)
        b_sum = b_sum * b_fade + tl.sum(b_p, 1)
        if VALUES:
            b_v = load_tile(v, o_j, DV, BLOCK_DV, MASKED, first_d)  # [BN,DV]
            b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_fade[:, None], input_precision=PRECISION)
        b_max = b_new
    return b_out, b_max, b_sum


@triton.jit
def _attend_all(
    b_max, b_sum, b_q, q, k, v, o_i, first_i, how, mask, first_d,
    BEFORE: tl.constexpr, VALUES: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    b_out = tl.zeros([BM, BLOCK_DV], tl.float32)
    start, full_first, full_last, end = keys_of(first_i, first_i + BM, o_i, mask, CAUSAL, BN)
    if BEFORE:
        b_out, b_max, b_sum = _attend(
            b_out, b_max, b_sum, b_q, q, k, v, start, full_first, o_i, how, mask, first_d,
            True, VALUES, CAUSAL, D, BLOCK_D, CHUNK, DV, BLOCK_DV, BN, PRECISION,
        )  # fmt: skip
    b_out, b_max, b_sum = _attend(
        b_out, b_max, b_sum, b_q, q, k, v, full_first, full_last, o_i, how, mask, first_d,
        False, VALUES, CAUSAL, D, BLOCK_D, CHUNK, DV, BLOCK_DV, BN, PRECISION,
    )  # fmt: skip
    return _attend(
        b_out, b_max, b_sum, b_q, q, k, v, full_last, end, o_i, how, mask, first_d,
        True, VALUES, CAUSAL, D, BLOCK_D, CHUNK, DV, BLOCK_DV, BN, PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=["window", "H", "T", "S"])
def attention_forward_kernel(
    p_q, p_k, p_v, p_gate, p_slopes, p_range, p_segments, p_blocks, p_sink, p_out, p_lse,
    s_qb, s_qh, s_qt, s_qd, s_kb, s_kh, s_kt, s_kd, s_vb, s_vh, s_vt, s_vd,
    scale, softcap, window, H, T, S,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, CHUNK_V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out [B,H,T,DV] and lse [B,H,T], both contiguous. Grid: (query tiles, the last, the longest, first, × H × B,
    parts of out's columns).
    """
    n_i = tl.cdiv(T, BM)
    i_program = tl.program_id(0)
    i_i = n_i - 1 - i_program % n_i
    i_h = i_program // n_i % H
    i_b = (i_program // n_i // H).to(tl.int64)
    first_i = i_i * BM
    o_i = first_i + tl.arange(0, BM)
    low, high = load_range(p_range, i_b, S)
    mask = (S - T, low, high, window, p_segments, p_blocks, i_b * 2 * S, S)
    BEFORE: tl.constexpr = p_range is not None or window is not None
    gate = load_gate(p_gate, i_b, i_h, H)
    how = (scale, softcap, p_slopes, load_slope(p_slopes, i_h))
    first_d = tl.program_id(1) * BLOCK_DV if DV > BLOCK_DV else None
    q = (p_q + i_b * s_qb + i_h.to(tl.int64) * s_qh, s_qt, s_qd, 0, T)
    k = (p_k + i_b * s_kb + (i_h // GROUP).to(tl.int64) * s_kh, s_kt, s_kd, low, high)
    v = (p_v + i_b * s_vb + (i_h // GROUP).to(tl.int64) * s_vh, s_vt, s_vd, low, high)
    b_q = load_tile(q, o_i, D, BLOCK_D, True)  # [BM,D]
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    if p_sink is not None:  # a logit that each row has seen before its keys, of no value
        b_max = tl.maximum(b_max, tl.load(p_sink + i_h) * LOG2E)
        b_sum += 1.0
    if p_gate is not None and gate == 0.0:
        # The log-sum-exp of a head with gate 0 is still computed; its values are never read.
        b_out, b_max, b_sum = _attend_all(
            b_max, b_sum, b_q, q, k, v, o_i, first_i, how, mask, first_d,
            BEFORE, False, CAUSAL, D, BLOCK_D, CHUNK, DV, BLOCK_DV, BM, BN, PRECISION,
        )  # fmt: skip
    else:
        b_out, b_max, b_sum = _attend_all(
            b_max, b_sum, b_q, q, k, v, o_i, first_i, how, mask, first_d,
            BEFORE, True, CAUSAL, D, BLOCK_D, CHUNK, DV, BLOCK_DV, BM, BN, PRECISION,
        )  # fmt: skip
    m_empty = b_sum == 0.0
    b_sum = tl.where(m_empty, 1.0, b_sum)
    b_out = b_out * (gate / b_sum)[:, None]
    if p_gate is not None:  # a head with gate 0 gives 0, whatever its sum
        b_out = tl.where(gate == 0.0, 0.0, b_out)
    b_lse = tl.where(m_empty, float("-inf"), (b_max + tl.log2(b_sum)) * LN2)
    row = (i_b * H + i_h) * T
    store_tile(p_out + row * DV, o_i, DV, b_out, T, DV, BLOCK_DV, first_d)
    tl.store(p_lse + row + o_i, b_lse, mask=o_i < rows_once(T, first_d))


def attention_forward(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """out [B,H,T,D] in the dtype of q, gated, and lse [B,H,T] float32."""
    q, k, v = call.q, call.k, call.v
    if call.scale < 0:  # the kernel takes a row's maximum before scaling
        q = -q
    out = torch.empty((call.B, call.H, call.T, call.DV), dtype=q.dtype, device=q.device)
    lse = torch.empty((call.B, call.H, call.T), dtype=torch.float32, device=q.device)

    def run(config: Config) -> None:
        def prepared() -> Launch:
            grid = (cdiv(call.T, config.BM) * call.H * call.B, call.parts(call.DV))
            numbers = (*q.stride(), *call.strides[4:], abs(call.scale), *call.sizes[1:])
            return Launch(attention_forward_kernel, grid, numbers, **call.fixed, **config.kwargs)

        call.once(("forward", config, q.stride()), prepared)(q, k, v, *call.given, call.sink, out, lse)

    if out.numel():
        run(config_of("attention_forward", TILES, call.widest, call, run, call.bends))
    return out, lse
