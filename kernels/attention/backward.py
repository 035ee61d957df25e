"""Attention, backward: delta, then dq, then dk and dv. Each has its own kernel, without atomic additions.

Source: Dao 2023 ("FlashAttention-2"), algorithm 2, except that no two programs write to the same address. dq loops over
the keys of a tile of queries, dk and dv over the queries of a tile of keys. With P the attention and g a head's gate,
dS = P ∘ (g · dO Vᵀ - delta), dq = scale · dS K, dk = scale · dSᵀ Q, dv = g · Pᵀ dO.
The dq kernel has computed P and dO Vᵀ, so it also sums the flow |g · P ∘ dO Vᵀ| by groups of keys.
"""

import torch
import triton
import triton.language as tl

from symground.kernels.attention.launch import Call
from symground.kernels.attention.mixing import attention_of, load_gate, load_lse2, load_slope, through_cap
from symground.kernels.attention.row_sums import normalized
from symground.kernels.common.configs import Config, Tiles
from symground.kernels.common.flow import add_flow, groups_of, store_flow
from symground.kernels.common.launch import Launch, cdiv, config_of, rows_adjacent
from symground.kernels.common.masks import keys_of, load_range, queries_of, seen
from symground.kernels.common.tiles import load_tile, product, rows_once, store_tile

#: Config(BM, BN, warps, stages) by architecture and element size, then by the largest BLOCK_D (`common/configs.py`).
#: float32's three-part products take many registers, so heads beyond 64 have small tiles. Heads beyond 128 have larger
#: ones again, because their products read them in chunks.
#: dkdv has keys as a tile's rows. On sm_90 heads beyond 128 have 32, too few for wgmma: with 64 keys, 16 queries, 8
#: warps and 2 stages, the loop touches local memory for heads of 192 under Triton 3.8 and 3.9.
TILES: dict[str, Tiles] = {
    "delta": Config(32, 32, 4, 1),  # a pass over rows, bound by memory: no BN
    "dq": {
        ("sm_80", 2): {64: Config(128, 32, 4, 2), 128: Config(128, 64, 8, 3), 256: Config(64, 64, 8, 2)},
        ("sm_80", 4): {64: Config(32, 32, 4, 2), 128: Config(16, 16, 4, 1), 256: Config(16, 32, 8, 1)},
        ("sm_86", 2): {64: Config(64, 64, 4, 3), 128: Config(64, 32, 4, 1), 256: Config(32, 32, 4, 2)},
        ("sm_86", 4): {64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(16, 32, 8, 1)},
        ("sm_90", 2): {64: Config(128, 64, 4, 3), 128: Config(128, 128, 8, 2), 256: Config(128, 32, 8, 2)},
        ("sm_90", 4): {64: Config(128, 64, 8, 3), 128: Config(16, 16, 4, 1), 256: Config(32, 16, 8, 1)},
        ("sm_100", 2): {64: Config(128, 128, 8, 2), 128: Config(128, 128, 8, 2), 256: Config(64, 64, 4, 2)},
        ("sm_100", 4): {64: Config(64, 64, 8, 2), 128: Config(16, 16, 4, 1), 256: Config(32, 16, 8, 1)},
        ("gfx942", 2): {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        ("gfx942", 4): {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
    },
    "dq_flow": {
        ("sm_80", 2): {64: Config(128, 32, 4, 2), 128: Config(128, 32, 8, 3), 256: Config(64, 64, 8, 1)},
        ("sm_80", 4): {64: Config(32, 32, 4, 2), 128: Config(16, 16, 4, 1), 256: Config(32, 32, 8, 1)},
        ("sm_86", 2): {64: Config(64, 64, 4, 3), 128: Config(64, 32, 4, 1), 256: Config(32, 32, 4, 2)},
        ("sm_86", 4): {64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(16, 16, 8, 1)},
        ("sm_90", 2): {64: Config(128, 32, 8, 2), 128: Config(128, 64, 8, 3), 256: Config(128, 16, 8, 2)},
        ("sm_90", 4): {64: Config(64, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(32, 16, 8, 1)},
        ("sm_100", 2): {256: Config(64, 64, 8, 2)},
        ("sm_100", 4): {64: Config(64, 64, 8, 1), 128: Config(16, 16, 4, 1), 256: Config(32, 32, 8, 1)},
        ("gfx942", 2): {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        ("gfx942", 4): {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
        ("sm_86, lighter", 2): {64: Config(64, 32, 8, 2)},
        ("sm_100, lighter", 4): {256: Config(32, 16, 8, 1)},
    },
    "dkdv": {
        ("sm_80", 2): {64: Config(32, 128, 4, 2), 128: Config(32, 64, 4, 2), 256: Config(64, 64, 8, 1)},
        ("sm_80", 4): {
            32: Config(16, 32, 4, 1), 64: Config(16, 32, 4, 2), 128: Config(16, 16, 4, 1), 256: Config(16, 16, 8, 1)},
        ("sm_86", 2): {64: Config(64, 128, 8, 3), 128: Config(64, 32, 4, 2), 256: Config(32, 32, 4, 1)},
        ("sm_86", 4): {
            32: Config(16, 64, 4, 1), 64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(16, 16, 8, 1)},
        ("sm_90", 2): {64: Config(32, 64, 4, 3), 128: Config(32, 64, 4, 3), 256: Config(64, 32, 8, 2)},
        ("sm_90", 4): {
            32: Config(32, 128, 8, 1), 64: Config(32, 32, 4, 2), 128: Config(16, 16, 4, 1), 256: Config(16, 16, 8, 1)},
        ("sm_100", 2): {64: Config(64, 128, 8, 3), 128: Config(64, 128, 8, 3), 256: Config(32, 64, 4, 2)},
        ("sm_100", 4): {
            32: Config(16, 32, 4, 1), 64: Config(32, 32, 4, 2), 128: Config(16, 16, 4, 1), 256: Config(16, 16, 8, 1)},
        ("gfx942", 2): {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        ("gfx942", 4): {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
    },
}  # fmt: skip


@triton.jit(do_not_specialize=["H", "T"])
def delta_kernel(
    p_out, p_grad, p_delta, s_gb, s_gh, s_gt, s_gd, H, T,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """delta[i] = ⟨dO[i], O[i]⟩, [B,H,T]; if O is gated, delta is the gated row sum of P ∘ dP."""
    n_i = tl.cdiv(T, BM)
    i_row = (tl.program_id(0) // n_i).to(tl.int64)  # of [B,H]
    o_i = tl.program_id(0) % n_i * BM + tl.arange(0, BM)
    b_delta = tl.zeros([BM], tl.float32)
    for c in tl.static_range(0, DV, BLOCK_DV):
        out = (p_out + i_row * T * DV + c, DV, 1, 0, T)
        grad = (p_grad + i_row // H * s_gb + i_row % H * s_gh + c * s_gd, s_gt, s_gd, 0, T)
        b_out = load_tile(out, o_i, DV - c, BLOCK_DV, True)
        b_grad = load_tile(grad, o_i, DV - c, BLOCK_DV, True)
        b_delta += tl.sum(b_out.to(tl.float32) * b_grad.to(tl.float32), 1)
    tl.store(p_delta + i_row * T + o_i, b_delta, mask=o_i < T)


@triton.jit
def _dq_through(
    b_dq, b_flow, b_total, b_slope, b_q, b_grad, b_lse, b_delta, q, k, v, grad, p_groups, start, end, o_i, gate, how,
    mask, flows, p_dslopes, first_d,
    MASKED: tl.constexpr, FLOW: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, CHUNK_V: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    # Float32's chunks of 16 queries are not kept in registers over the loop: Triton 3.6 spilled them. With 32 queries
    # the loop spills more without them, under 3.9.
    for j in tl.range(start, end, BN, disable_licm=CHUNK < BLOCK_D and b_q.shape[0] <= 16):
        o_j = j + tl.arange(0, BN)
        b_k = load_tile(k, o_j, D, BLOCK_D, MASKED, first_d)  # [BN,D]
        b_v = load_tile(v, o_j, DV, BLOCK_DV, MASKED)  # [BN,DV]
        b_s = product(b_q, b_k, q, k, o_i, o_j, D, BLOCK_D, CHUNK, PRECISION)  # [BM,BN]
        b_p = attention_of(b_s, b_lse[:, None], o_i[:, None], o_j[None, :], mask[0], how)
        if MASKED:
            b_p = tl.where(seen(o_i[:, None], o_j[None, :], mask, CAUSAL), b_p, 0.0)
        b_dp = product(b_grad, b_v, grad, v, o_i, o_j, DV, BLOCK_DV, CHUNK_V, PRECISION) * gate  # [BM,BN]
        if FLOW and flows:
            b_flow, b_total = add_flow(b_flow, b_total, tl.abs(b_p * b_dp), p_groups, 0, o_j, mask[2])
        b_ds = b_p * (b_dp - b_delta[:, None])
        if p_dslopes is not None:
            b_slope += tl.sum(b_ds * (o_j[None, :] - o_i[:, None] - mask[0]).to(tl.float32), 1)
        b_ds = through_cap(b_ds, b_s, how)
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)
    return b_dq, b_flow, b_total, b_slope


@triton.jit(do_not_specialize=["window", "H", "T", "S", "num_query_groups", "num_key_groups"])
def dq_kernel(
    p_q, p_k, p_v, p_grad, p_lse, p_delta, p_gate, p_slopes, p_range, p_segments, p_blocks, p_dq, p_dslopes,
    p_query_groups, p_key_groups, p_flow, p_row_total, num_query_groups, num_key_groups,
    s_qb, s_qh, s_qt, s_qd, s_kb, s_kh, s_kt, s_kd, s_vb, s_vh, s_vt, s_vd, s_gb, s_gh, s_gt, s_gd,
    scale, softcap, window, H, T, S,
    FLOW: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, CHUNK_V: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq [B,H,T,D], contiguous; with ``FLOW`` the tile's part of F; with p_dslopes its part of them, [B,H,n_i].

    Grid: (query tiles, last first, × H × B, parts of dq's columns).
    """
    n_i = tl.cdiv(T, BM)
    i_program = tl.program_id(0)
    i_i = n_i - 1 - i_program % n_i
    i_h = (i_program // n_i % H).to(tl.int64)
    i_b = (i_program // n_i // H).to(tl.int64)
    row = (i_b * H + i_h) * T
    first_i = i_i * BM
    o_i = first_i + tl.arange(0, BM)
    low, high = load_range(p_range, i_b, S)
    mask = (S - T, low, high, window, p_segments, p_blocks, i_b * 2 * S, S)
    gate = load_gate(p_gate, i_b, i_h, H)
    how = (scale, softcap, p_slopes, load_slope(p_slopes, i_h))
    first_d = tl.program_id(1) * BLOCK_D if D > BLOCK_D else None
    start, full_first, full_last, end = keys_of(first_i, first_i + BM, o_i, mask, CAUSAL, BN)
    if p_gate is not None and gate == 0.0:  # a head with gate 0 has gradient 0: no loop runs
        start, full_first, full_last, end = 0, 0, 0, 0
    q = (p_q + i_b * s_qb + i_h * s_qh, s_qt, s_qd, 0, T)
    k = (p_k + i_b * s_kb + i_h // GROUP * s_kh, s_kt, s_kd, low, high)
    v = (p_v + i_b * s_vb + i_h // GROUP * s_vh, s_vt, s_vd, low, high)
    grad = (p_grad + i_b * s_gb + i_h * s_gh, s_gt, s_gd, 0, T)
    b_q = load_tile(q, o_i, D, BLOCK_D, True)  # [BM,D]
    b_grad = load_tile(grad, o_i, DV, BLOCK_DV, True)  # [BM,DV]
    b_lse = load_lse2(p_lse + row, o_i, T)
    b_delta = tl.load(p_delta + row + o_i, mask=o_i < T, other=0.0)
    b_dq = tl.zeros([BM, BLOCK_D], tl.float32)
    b_flow = tl.zeros([BM, GROUPS], tl.float32)
    b_total = tl.zeros([BM], tl.float32)
    b_slope = tl.zeros([BM], tl.float32)
    b_group = tl.full([BM], -1, tl.int32)
    flows = False
    if FLOW:
        p_key_groups += i_b * S
        b_group = tl.load(p_query_groups + i_b * T + o_i, mask=o_i < T, other=-1).to(tl.int32)
        flows = tl.max(b_group, 0) >= 0
    if p_range is not None or window is not None:
        b_dq, b_flow, b_total, b_slope = _dq_through(
            b_dq, b_flow, b_total, b_slope, b_q, b_grad, b_lse, b_delta, q, k, v, grad, p_key_groups, start,
            full_first, o_i, gate, how, mask, flows, p_dslopes, first_d, True, FLOW, CAUSAL, D, BLOCK_D, CHUNK, DV,
            BLOCK_DV, CHUNK_V, BN, PRECISION,
        )  # fmt: skip
    b_dq, b_flow, b_total, b_slope = _dq_through(
        b_dq, b_flow, b_total, b_slope, b_q, b_grad, b_lse, b_delta, q, k, v, grad, p_key_groups, full_first,
        full_last, o_i, gate, how, mask, flows, p_dslopes, first_d, False, FLOW, CAUSAL, D, BLOCK_D, CHUNK, DV,
        BLOCK_DV, CHUNK_V, BN, PRECISION,
    )  # fmt: skip
    b_dq, b_flow, b_total, b_slope = _dq_through(
        b_dq, b_flow, b_total, b_slope, b_q, b_grad, b_lse, b_delta, q, k, v, grad, p_key_groups, full_last, end, o_i,
        gate, how, mask, flows, p_dslopes, first_d, True, FLOW, CAUSAL, D, BLOCK_D, CHUNK, DV, BLOCK_DV, CHUNK_V, BN,
        PRECISION,
    )  # fmt: skip
    store_tile(p_dq + row * D, o_i, D, b_dq * scale, T, D, BLOCK_D, first_d)
    i_part = (i_b * H + i_h) * n_i + i_i
    stores = rows_once(1, first_d) == 1
    if p_dslopes is not None:
        tl.store(p_dslopes + i_part, tl.sum(b_slope, 0), mask=stores)
    if FLOW and stores:
        store_flow(p_flow, p_row_total, i_part, b_flow, b_total, b_group, 0, num_query_groups, num_key_groups, GROUPS)


@triton.jit
def _dkdv_of(
    b_dk, b_dv, b_k, b_v, q, k, v, grad, p_lse, p_delta, i, o_j, gate, how, mask, first_d, first_dv, T,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, CHUNK_V: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what queries [i, i + BM) of one head contribute."""
    o_i = i + tl.arange(0, BM)
    b_q = load_tile(q, o_i, D, BLOCK_D, MASKED, first_d)  # [BM,D]
    b_grad = load_tile(grad, o_i, DV, BLOCK_DV, MASKED, first_dv)  # [BM,DV]
    b_lse = load_lse2(p_lse, o_i, T)
    b_delta = tl.load(p_delta + o_i, mask=o_i < T, other=0.0)
    # Keys are the rows here, so that every product has its accumulator in the layout of dk and dv.
    b_s = product(b_k, b_q, k, q, o_j, o_i, D, BLOCK_D, CHUNK, PRECISION)  # [BN,BM]
    b_p = attention_of(b_s, b_lse[None, :], o_i[None, :], o_j[:, None], mask[0], how)
    if MASKED:
        b_p = tl.where(seen(o_i[None, :], o_j[:, None], mask, CAUSAL), b_p, 0.0)
    b_dv = tl.dot((b_p * gate).to(b_grad.dtype), b_grad, b_dv, input_precision=PRECISION)
    b_dp = product(b_v, b_grad, v, grad, o_j, o_i, DV, BLOCK_DV, CHUNK_V, PRECISION) * gate  # [BN,BM]
    b_ds = through_cap(b_p * (b_dp - b_delta[None, :]), b_s, how)
    b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)
    return b_dk, b_dv


@triton.jit
def _dkdv_through(
    b_dk, b_dv, b_k, b_v, q, k, v, grad, p_lse, p_delta, p_gate, p_slopes, start, end, o_j, scale, softcap, mask,
    first_d, first_dv, T,
    MASKED: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, CHUNK_V: tl.constexpr, BM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what queries [start, end) of the heads of a group contribute; the pointers are at its first head.

    One loop over heads and tiles: within a loop over heads, what is prepared of k and v for each of the three ranges of
    queries would be kept at once, which is more than fits.
    """
    p_q, s_qh, s_qt, s_qd = q
    p_grad, s_gh, s_gt, s_gd = grad
    n_i = tl.cdiv(end - start, BM)
    i_h, before = tl.full((), 0, tl.int64), 0  # the head, of those of the group, and the tiles of the heads before it
    for t in range(0, n_i * GROUP):
        i = start + (t - before) * BM
        q_of = (p_q + i_h * s_qh, s_qt, s_qd, 0, T)
        grad_of = (p_grad + i_h * s_gh, s_gt, s_gd, 0, T)
        row = i_h * T
        gate = load_gate(p_gate, 0, i_h, 0)
        if p_gate is None or gate != 0.0:
            how = (scale, softcap, p_slopes, load_slope(p_slopes, i_h))
            b_dk, b_dv = _dkdv_of(
                b_dk, b_dv, b_k, b_v, q_of, k, v, grad_of, p_lse + row, p_delta + row, i, o_j, gate, how, mask,
                first_d, first_dv, T, MASKED, CAUSAL, D, BLOCK_D, CHUNK, DV, BLOCK_DV, CHUNK_V, BM, PRECISION,
            )  # fmt: skip
        if GROUP > 1:  # not a division of t: it takes registers that wide heads in float32 do not have
            last = t + 1 == before + n_i
            i_h, before = i_h + last, tl.where(last, before + n_i, before)
    return b_dk, b_dv


@triton.jit(do_not_specialize=["window", "H", "T", "S"])
def dkdv_kernel(
    p_q, p_k, p_v, p_grad, p_lse, p_delta, p_gate, p_slopes, p_range, p_segments, p_blocks, p_dk, p_dv,
    s_qb, s_qh, s_qt, s_qd, s_kb, s_kh, s_kt, s_kd, s_vb, s_vh, s_vt, s_vd, s_gb, s_gh, s_gt, s_gd,
    scale, softcap, window, H, T, S,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, CHUNK_V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dk [B,Hk,S,D] and dv [B,Hk,S,DV], contiguous.

    Grid: (key tiles, the first (the longest) first, × Hk × B, parts of the columns of both). The program loops over the
    query heads that share a key head, so no other program adds to its result.
    """
    n_j = tl.cdiv(S, BN)
    i_program = tl.program_id(0)
    first_j = i_program % n_j * BN
    i_k = (i_program // n_j % (H // GROUP)).to(tl.int64)
    i_b = (i_program // n_j // (H // GROUP)).to(tl.int64)
    o_j = first_j + tl.arange(0, BN)
    low, high = load_range(p_range, i_b, S)
    mask = (S - T, low, high, window, p_segments, p_blocks, i_b * 2 * S, S)
    first_d = tl.program_id(1) * BLOCK_D if D > BLOCK_D else None
    first_dv = tl.program_id(1) * BLOCK_DV if DV > BLOCK_DV else None
    k = (p_k + i_b * s_kb + i_k * s_kh, s_kt, s_kd, low, high)
    v = (p_v + i_b * s_vb + i_k * s_vh, s_vt, s_vd, low, high)
    b_k = load_tile(k, o_j, D, BLOCK_D, True)  # [BN,D]
    b_v = load_tile(v, o_j, DV, BLOCK_DV, True)  # [BN,DV]
    b_dk = tl.zeros([BN, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BN, BLOCK_DV], tl.float32)
    i_h = i_k * GROUP
    q = (p_q + i_b * s_qb + i_h * s_qh, s_qh, s_qt, s_qd)
    grad = (p_grad + i_b * s_gb + i_h * s_gh, s_gh, s_gt, s_gd)
    i_bh = i_b * H + i_h
    p_lse += i_bh * T
    p_delta += i_bh * T
    if p_gate is not None:
        p_gate += i_bh
    if p_slopes is not None:
        p_slopes += i_h
    start, full_first, full_last, end = queries_of(first_j, first_j + BN, o_j, mask, T, CAUSAL, BM)
    b_dk, b_dv = _dkdv_through(
        b_dk, b_dv, b_k, b_v, q, k, v, grad, p_lse, p_delta, p_gate, p_slopes, start, full_first, o_j, scale, softcap,
        mask, first_d, first_dv, T, True, GROUP, CAUSAL, D, BLOCK_D, CHUNK, DV, BLOCK_DV, CHUNK_V, BM, PRECISION,
    )  # fmt: skip
    b_dk, b_dv = _dkdv_through(
        b_dk, b_dv, b_k, b_v, q, k, v, grad, p_lse, p_delta, p_gate, p_slopes, full_first, full_last, o_j, scale,
        softcap, mask, first_d, first_dv, T, False, GROUP, CAUSAL, D, BLOCK_D, CHUNK, DV, BLOCK_DV, CHUNK_V, BM,
        PRECISION,
    )  # fmt: skip
    b_dk, b_dv = _dkdv_through(
        b_dk, b_dv, b_k, b_v, q, k, v, grad, p_lse, p_delta, p_gate, p_slopes, full_last, end, o_j, scale, softcap,
        mask, first_d, first_dv, T, True, GROUP, CAUSAL, D, BLOCK_D, CHUNK, DV, BLOCK_DV, CHUNK_V, BM, PRECISION,
    )  # fmt: skip
    row = (i_b * (H // GROUP) + i_k) * S
    # If only one of the two has parts, every program has all of the other.
    rows_dk = S if first_d is not None else rows_once(S, first_dv)
    rows_dv = S if first_dv is not None else rows_once(S, first_d)
    store_tile(p_dk + row * D, o_j, D, b_dk * scale, rows_dk, D, BLOCK_D, first_d)
    store_tile(p_dv + row * DV, o_j, DV, b_dv, rows_dv, DV, BLOCK_DV, first_dv)


def attention_backward(
    call: Call,
    grad_out: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    of_slopes: bool,
    query_groups: torch.Tensor | None,
    key_groups: torch.Tensor | None,
    num_query_groups: int,
    num_key_groups: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """dq, dk, dv contiguous in the dtype of q; float32, F [B,H,Gq,Gk] if there are groups, dslopes [H] if of_slopes.

    There are at most 16 groups of keys.
    """
    q, k, v = call.q, call.k, call.v
    grad_out, out, lse = rows_adjacent(grad_out), out.contiguous(), lse.contiguous()
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    flows = query_groups is not None
    if not q.numel() or not k.numel():
        none = lse.new_zeros(call.B, call.H, num_query_groups, num_key_groups) if flows else None
        return dq.zero_(), dk.zero_(), dv.zero_(), none, lse.new_zeros(call.H) if of_slopes else None
    delta = torch.empty_like(lse)
    groups = [None if x is None else x.contiguous() for x in (query_groups, key_groups)]

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(call.B, call.H, *shape, dtype=torch.float32, device=q.device)

    def run_delta(config: Config) -> None:
        def prepared() -> Launch:
            grid, numbers = (cdiv(call.T, config.BM) * call.H * call.B,), (*grad_out.stride(), call.H, call.T)
            return Launch(delta_kernel, grid, numbers, DV=call.DV, BLOCK_DV=call.fixed["BLOCK_DV"], **config.kwargs)

        call.once(("delta", config, grad_out.stride()), prepared)(out, grad_out, delta)

    def run_dq(config: Config) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        tiles = cdiv(call.T, config.BM)
        dslopes = empty(tiles) if of_slopes else None
        flow, row_total = (
            (empty(tiles, num_query_groups, num_key_groups), empty(tiles, num_query_groups)) if flows else (None, None)
        )
        grad, of_row = grad_out, delta
        if flows:  # dq alone needs no sums: rounded logits cost it more than this factor
            grad, of_row = normalized(call, config, lse, grad_out, delta, from_forward=True)

        def prepared() -> Launch:
            return Launch(
                dq_kernel, (tiles * call.H * call.B, call.parts(call.D)),
                (num_query_groups, num_key_groups, *call.strides, *grad.stride(), *call.sizes), FLOW=flows,
                GROUPS=groups_of(num_key_groups), **call.fixed, **config.kwargs,
            )  # fmt: skip

        launch = call.once(("dq", config, grad.stride(), of_slopes, flows, num_query_groups, num_key_groups), prepared)
        launch(q, k, v, grad, lse, of_row, *call.given, dq, dslopes, *groups, flow, row_total)
        return flow, dslopes

    def run_dkdv(config: Config) -> None:
        grad, of_row = normalized(call, config, lse, grad_out, delta, keys_first=True, from_forward=True)

        def prepared() -> Launch:
            grid = (cdiv(call.S, config.BN) * call.Hk * call.B, call.parts(call.D, call.DV))
            return Launch(
                dkdv_kernel, grid, (*call.strides, *grad.stride(), *call.sizes), **call.fixed, **config.kwargs
            )

        launch = call.once(("dkdv", config, grad.stride()), prepared)
        launch(q, k, v, grad, lse, of_row, *call.given, dk, dv)

    widest = call.widest
    run_delta(config_of("delta", TILES, widest, call, run_delta, call.bends))
    flow, dslopes = run_dq(config_of("dq_flow" if flows else "dq", TILES, widest, call, run_dq, call.bends))
    run_dkdv(config_of("dkdv", TILES, widest, call, run_dkdv, call.bends))
    flow, dslopes = None if flow is None else flow.sum(2), None if dslopes is None else dslopes.sum((0, 2))
    return dq, dk, dv, flow, dslopes
