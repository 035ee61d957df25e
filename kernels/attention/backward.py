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
from symground.kernels.attention.row_sums import normalized
from symground.kernels.common.configs import Config, Tiles
from symground.kernels.common.flow import add_flow, groups_of, store_flow
from symground.kernels.common.launch import Launch, cdiv, config_of, rows_adjacent
from symground.kernels.common.tiles import (
    LOG2E,
    keys_of,
    load_gate,
    load_lse2,
    load_range,
    load_tile,
    product,
    queries_of,
    seen,
    store_tile,
)

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
        ("sm_90", 4): {64: Config(128, 64, 8, 3), 128: Config(16, 16, 4, 1), 256: Config(32, 32, 8, 1)},
        ("sm_100", 2): {64: Config(128, 128, 8, 2), 128: Config(128, 128, 8, 2), 256: Config(64, 64, 4, 2)},
        ("sm_100", 4): {64: Config(64, 64, 8, 2), 128: Config(16, 16, 4, 1), 256: Config(32, 16, 8, 1)},
        ("gfx942", 2): {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        ("gfx942", 4): {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
    },
    "dq_flow": {
        ("sm_80", 2): {64: Config(128, 32, 4, 2), 128: Config(128, 64, 8, 3), 256: Config(64, 64, 8, 1)},
        ("sm_80", 4): {64: Config(32, 32, 4, 2), 128: Config(16, 16, 4, 1), 256: Config(32, 32, 8, 1)},
        ("sm_86", 2): {64: Config(64, 64, 4, 3), 128: Config(64, 32, 4, 1), 256: Config(32, 32, 4, 2)},
        ("sm_86", 4): {64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(16, 16, 8, 1)},
        ("sm_90", 2): {64: Config(128, 32, 8, 2), 128: Config(128, 64, 8, 3), 256: Config(128, 16, 8, 2)},
        ("sm_90", 4): {64: Config(64, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(32, 16, 8, 1)},
        ("sm_100", 2): {256: Config(64, 64, 8, 2)},
        ("sm_100", 4): {64: Config(64, 64, 8, 1), 128: Config(16, 16, 4, 1), 256: Config(32, 32, 8, 1)},
        ("gfx942", 2): {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        ("gfx942", 4): {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
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
    D: tl.constexpr, BLOCK_D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """delta[i] = ⟨dO[i], O[i]⟩, [B,H,T]; if O is gated, delta is the gated row sum of P ∘ dP."""
    n_i = tl.cdiv(T, BM)
    i_row = (tl.program_id(0) // n_i).to(tl.int64)  # of [B,H]
    o_i = tl.program_id(0) % n_i * BM + tl.arange(0, BM)
    b_out = load_tile((p_out + i_row * T * D, D, 1, 0, T), o_i, D, BLOCK_D, True)
    b_grad = load_tile((p_grad + i_row // H * s_gb + i_row % H * s_gh, s_gt, s_gd, 0, T), o_i, D, BLOCK_D, True)
    b_delta = tl.sum(b_out.to(tl.float32) * b_grad.to(tl.float32), 1)
    tl.store(p_delta + i_row * T + o_i, b_delta, mask=o_i < T)


@triton.jit
def _dq_through(
    b_dq, b_flow, b_total, b_q, b_grad, b_lse, b_delta, q, k, v, grad, p_groups, start, end, o_i, gate, scale, offset,
    low, high, window, flows,
    MASKED: tl.constexpr, FLOW: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Float32's chunks of 16 queries are not kept in registers over the loop: Triton 3.6 spilled them. With 32 queries
    # the loop spills more without them, under 3.9.
    for j in tl.range(start, end, BN, disable_licm=CHUNK < BLOCK_D and b_q.shape[0] <= 16):
        o_j = j + tl.arange(0, BN)
        b_k = load_tile(k, o_j, D, BLOCK_D, MASKED)  # [BN,D]
        b_v = load_tile(v, o_j, D, BLOCK_D, MASKED)  # [BN,D]
        b_s = product(b_q, b_k, q, k, o_i, o_j, D, BLOCK_D, CHUNK, PRECISION)  # [BM,BN]
        b_p = tl.exp2(b_s * scale - b_lse[:, None])
        if MASKED:
            m_seen = seen(o_i[:, None], o_j[None, :], offset, low, high, window, CAUSAL, WINDOW)
            b_p = tl.where(m_seen, b_p, 0.0)
        b_dp = product(b_grad, b_v, grad, v, o_i, o_j, D, BLOCK_D, CHUNK, PRECISION) * gate  # [BM,BN]
        if FLOW and flows:
            b_flow, b_total = add_flow(b_flow, b_total, tl.abs(b_p * b_dp), p_groups, 0, o_j, high)
        b_ds = b_p * (b_dp - b_delta[:, None])
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)
    return b_dq, b_flow, b_total


@triton.jit(do_not_specialize=["window", "H", "T", "S", "num_query_groups", "num_key_groups"])
def dq_kernel(
    p_q, p_k, p_v, p_grad, p_lse, p_delta, p_gate, p_range, p_dq,
    p_query_groups, p_key_groups, p_flow, p_row_total, num_query_groups, num_key_groups,
    s_qb, s_qh, s_qt, s_qd, s_kb, s_kh, s_kt, s_kd, s_vb, s_vh, s_vt, s_vd, s_gb, s_gh, s_gt, s_gd,
    scale, window, H, T, S,
    FLOW: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    HAS_RANGE: tl.constexpr, HAS_GATE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq [B,H,T,D], contiguous, and with ``FLOW`` the tile's part of F. Grid: query tiles, last first, × H × B."""
    n_i = tl.cdiv(T, BM)
    i_program = tl.program_id(0)
    i_i = n_i - 1 - i_program % n_i
    i_h = (i_program // n_i % H).to(tl.int64)
    i_b = (i_program // n_i // H).to(tl.int64)
    row = (i_b * H + i_h) * T
    offset = S - T
    first_i = i_i * BM
    o_i = first_i + tl.arange(0, BM)
    low, high = load_range(p_range, i_b, S, HAS_RANGE)
    gate = load_gate(p_gate, i_b, i_h, H, HAS_GATE)
    start, full_first, full_last, end = keys_of(first_i, first_i + BM, offset, low, high, window, CAUSAL, WINDOW, BN)
    if HAS_GATE and gate == 0.0:  # a head with gate 0 has gradient 0: no loop runs
        start, full_first, full_last, end = 0, 0, 0, 0
    q = (p_q + i_b * s_qb + i_h * s_qh, s_qt, s_qd, 0, T)
    k = (p_k + i_b * s_kb + i_h // GROUP * s_kh, s_kt, s_kd, low, high)
    v = (p_v + i_b * s_vb + i_h // GROUP * s_vh, s_vt, s_vd, low, high)
    grad = (p_grad + i_b * s_gb + i_h * s_gh, s_gt, s_gd, 0, T)
    b_q = load_tile(q, o_i, D, BLOCK_D, True)  # [BM,D]
    b_grad = load_tile(grad, o_i, D, BLOCK_D, True)  # [BM,D]
    b_lse = load_lse2(p_lse + row, o_i, T)
    b_delta = tl.load(p_delta + row + o_i, mask=o_i < T, other=0.0)
    b_dq = tl.zeros([BM, BLOCK_D], tl.float32)
    b_flow = tl.zeros([BM, GROUPS], tl.float32)
    b_total = tl.zeros([BM], tl.float32)
    b_group = tl.full([BM], -1, tl.int32)
    flows = False
    if FLOW:
        p_key_groups += i_b * S
        b_group = tl.load(p_query_groups + i_b * T + o_i, mask=o_i < T, other=-1).to(tl.int32)
        flows = tl.max(b_group, 0) >= 0
    if HAS_RANGE or WINDOW:
        b_dq, b_flow, b_total = _dq_through(
            b_dq, b_flow, b_total, b_q, b_grad, b_lse, b_delta, q, k, v, grad, p_key_groups, start, full_first, o_i,
            gate, scale * LOG2E, offset, low, high, window, flows, True, FLOW, CAUSAL, WINDOW, D, BLOCK_D, CHUNK, BN,
            PRECISION,
        )  # fmt: skip
    b_dq, b_flow, b_total = _dq_through(
        b_dq, b_flow, b_total, b_q, b_grad, b_lse, b_delta, q, k, v, grad, p_key_groups, full_first, full_last, o_i,
        gate, scale * LOG2E, offset, low, high, window, flows, False, FLOW, CAUSAL, WINDOW, D, BLOCK_D, CHUNK, BN,
        PRECISION,
    )  # fmt: skip
    b_dq, b_flow, b_total = _dq_through(
        b_dq, b_flow, b_total, b_q, b_grad, b_lse, b_delta, q, k, v, grad, p_key_groups, full_last, end, o_i,
        gate, scale * LOG2E, offset, low, high, window, flows, True, FLOW, CAUSAL, WINDOW, D, BLOCK_D, CHUNK, BN,
        PRECISION,
    )  # fmt: skip
    store_tile(p_dq + row * D, o_i, D, b_dq * scale, T, D, BLOCK_D)
    if FLOW:
        i_part = (i_b * H + i_h) * n_i + i_i
        store_flow(p_flow, p_row_total, i_part, b_flow, b_total, b_group, 0, num_query_groups, num_key_groups, GROUPS)


@triton.jit
def _dkdv_of(
    b_dk, b_dv, b_k, b_v, q, k, v, grad, p_lse, p_delta, i, o_j, gate, scale, offset, low, high, window, T,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what queries [i, i + BM) of one head contribute."""
    o_i = i + tl.arange(0, BM)
    b_q = load_tile(q, o_i, D, BLOCK_D, MASKED)  # [BM,D]
    b_grad = load_tile(grad, o_i, D, BLOCK_D, MASKED)  # [BM,D]
    b_lse = load_lse2(p_lse, o_i, T)
    b_delta = tl.load(p_delta + o_i, mask=o_i < T, other=0.0)
    # Keys are the rows here, so that every product has its accumulator in the layout of dk and dv.
    b_s = product(b_k, b_q, k, q, o_j, o_i, D, BLOCK_D, CHUNK, PRECISION)  # [BN,BM]
    b_p = tl.exp2(b_s * scale - b_lse[None, :])
    if MASKED:
        m_seen = seen(o_i[None, :], o_j[:, None], offset, low, high, window, CAUSAL, WINDOW)
        b_p = tl.where(m_seen, b_p, 0.0)
    b_dv = tl.dot((b_p * gate).to(b_grad.dtype), b_grad, b_dv, input_precision=PRECISION)
    b_dp = product(b_v, b_grad, v, grad, o_j, o_i, D, BLOCK_D, CHUNK, PRECISION) * gate  # [BN,BM]
    b_ds = b_p * (b_dp - b_delta[None, :])
    b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)
    return b_dk, b_dv


@triton.jit
def _dkdv_through(
    b_dk, b_dv, b_k, b_v, q, k, v, grad, p_lse, p_delta, p_gate, start, end, o_j, scale, offset, low, high, window, T,
    MASKED: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, HAS_GATE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr,
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
        gate = 1.0
        if HAS_GATE:
            gate = tl.load(p_gate + i_h)
        if not HAS_GATE or gate != 0.0:
            b_dk, b_dv = _dkdv_of(
                b_dk, b_dv, b_k, b_v, q_of, k, v, grad_of, p_lse + row, p_delta + row, i, o_j, gate, scale, offset,
                low, high, window, T, MASKED, CAUSAL, WINDOW, D, BLOCK_D, CHUNK, BM, PRECISION,
            )  # fmt: skip
        if GROUP > 1:  # not a division of t: it takes registers that wide heads in float32 do not have
            last = t + 1 == before + n_i
            i_h, before = i_h + last, tl.where(last, before + n_i, before)
    return b_dk, b_dv


@triton.jit(do_not_specialize=["window", "H", "T", "S"])
def dkdv_kernel(
    p_q, p_k, p_v, p_grad, p_lse, p_delta, p_gate, p_range, p_dk, p_dv,
    s_qb, s_qh, s_qt, s_qd, s_kb, s_kh, s_kt, s_kd, s_vb, s_vh, s_vt, s_vd, s_gb, s_gh, s_gt, s_gd,
    scale, window, H, T, S,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, HAS_RANGE: tl.constexpr, HAS_GATE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv [B,Hk,S,D], contiguous. Grid: key tiles, the first (the longest) first, × Hk × B.

    The program loops over the query heads that share a key head, so no other program adds to its result.
    """
    n_j = tl.cdiv(S, BN)
    i_program = tl.program_id(0)
    first_j = i_program % n_j * BN
    i_k = (i_program // n_j % (H // GROUP)).to(tl.int64)
    i_b = (i_program // n_j // (H // GROUP)).to(tl.int64)
    offset = S - T
    o_j = first_j + tl.arange(0, BN)
    low, high = load_range(p_range, i_b, S, HAS_RANGE)
    k = (p_k + i_b * s_kb + i_k * s_kh, s_kt, s_kd, low, high)
    v = (p_v + i_b * s_vb + i_k * s_vh, s_vt, s_vd, low, high)
    b_k = load_tile(k, o_j, D, BLOCK_D, True)  # [BN,D]
    b_v = load_tile(v, o_j, D, BLOCK_D, True)  # [BN,D]
    b_dk = tl.zeros([BN, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BN, BLOCK_D], tl.float32)
    i_h = i_k * GROUP
    q = (p_q + i_b * s_qb + i_h * s_qh, s_qh, s_qt, s_qd)
    grad = (p_grad + i_b * s_gb + i_h * s_gh, s_gh, s_gt, s_gd)
    i_bh = i_b * H + i_h
    p_lse += i_bh * T
    p_delta += i_bh * T
    if HAS_GATE:
        p_gate += i_bh
    start, full_first, full_last, end = queries_of(
        first_j, first_j + BN, offset, low, high, window, T, CAUSAL, WINDOW, BM
    )
    b_dk, b_dv = _dkdv_through(
        b_dk, b_dv, b_k, b_v, q, k, v, grad, p_lse, p_delta, p_gate, start, full_first, o_j, scale * LOG2E,
        offset, low, high, window, T, True, GROUP, CAUSAL, WINDOW, HAS_GATE, D, BLOCK_D, CHUNK, BM, PRECISION,
    )  # fmt: skip
    b_dk, b_dv = _dkdv_through(
        b_dk, b_dv, b_k, b_v, q, k, v, grad, p_lse, p_delta, p_gate, full_first, full_last, o_j,
        scale * LOG2E, offset, low, high, window, T, False, GROUP, CAUSAL, WINDOW, HAS_GATE, D, BLOCK_D, CHUNK, BM,
        PRECISION,
    )  # fmt: skip
    b_dk, b_dv = _dkdv_through(
        b_dk, b_dv, b_k, b_v, q, k, v, grad, p_lse, p_delta, p_gate, full_last, end, o_j, scale * LOG2E,
        offset, low, high, window, T, True, GROUP, CAUSAL, WINDOW, HAS_GATE, D, BLOCK_D, CHUNK, BM, PRECISION,
    )  # fmt: skip
    row = (i_b * (H // GROUP) + i_k) * S * D
    store_tile(p_dk + row, o_j, D, b_dk * scale, S, D, BLOCK_D)
    store_tile(p_dv + row, o_j, D, b_dv, S, D, BLOCK_D)


def attention_backward(
    call: Call,
    grad_out: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    query_groups: torch.Tensor | None,
    key_groups: torch.Tensor | None,
    num_query_groups: int,
    num_key_groups: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """dq, dk, dv contiguous in the dtype of q, and with groups F [B,H,Gq,Gk] float32 (at most 16 groups of keys)."""
    q, k, v = call.q, call.k, call.v
    grad_out, out, lse = rows_adjacent(grad_out), out.contiguous(), lse.contiguous()
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    if not q.numel() or not k.numel():
        none = None if query_groups is None else q.new_zeros(*q.shape[:2], num_query_groups, num_key_groups)
        return dq.zero_(), dk.zero_(), dv.zero_(), none
    delta = torch.empty_like(lse)
    flows = query_groups is not None
    groups = [None if x is None else x.contiguous() for x in (query_groups, key_groups)]

    def run_delta(config: Config) -> None:
        def prepared() -> Launch:
            grid, numbers = (cdiv(call.T, config.BM) * call.H * call.B,), (*grad_out.stride(), call.H, call.T)
            return Launch(delta_kernel, grid, numbers, D=call.D, BLOCK_D=call.fixed["BLOCK_D"], **config.kwargs)

        call.once(("delta", config, grad_out.stride()), prepared)(out, grad_out, delta)

    def run_dq(config: Config) -> torch.Tensor | None:
        tiles = cdiv(call.T, config.BM)
        parts: list[torch.Tensor | None] = [None, None]
        if flows:
            parts = [
                torch.empty(*q.shape[:2], tiles, *shape, dtype=torch.float32, device=q.device)
                for shape in ((num_query_groups, num_key_groups), (num_query_groups,))
            ]
        grad, of_row = grad_out, delta
        if flows:  # dq alone needs no sums: rounded logits cost it more than this factor
            grad, of_row = normalized(call, config, lse, grad_out, delta, from_forward=True)

        def prepared() -> Launch:
            return Launch(
                dq_kernel, (tiles * call.H * call.B,),
                (num_query_groups, num_key_groups, *call.strides, *grad.stride(), *call.sizes), FLOW=flows,
                GROUPS=groups_of(num_key_groups), **call.fixed, **config.kwargs,
            )  # fmt: skip

        launch = call.once(("dq", config, grad.stride(), flows, num_query_groups, num_key_groups), prepared)
        launch(q, k, v, grad, lse, of_row, call.gate, call.key_range, dq, *groups, *parts)
        return parts[0]

    def run_dkdv(config: Config) -> None:
        grad, of_row = normalized(call, config, lse, grad_out, delta, keys_first=True, from_forward=True)

        def prepared() -> Launch:
            grid, numbers = (cdiv(call.S, config.BN) * call.Hk * call.B,), (*call.strides, *grad.stride(), *call.sizes)
            return Launch(dkdv_kernel, grid, numbers, **call.fixed, **config.kwargs)

        launch = call.once(("dkdv", config, grad.stride()), prepared)
        launch(q, k, v, grad, lse, of_row, call.gate, call.key_range, dk, dv)

    run_delta(config_of("delta", TILES, q, call, run_delta))
    parts = run_dq(config_of("dq_flow" if flows else "dq", TILES, q, call, run_dq))
    run_dkdv(config_of("dkdv", TILES, q, call, run_dkdv))
    return dq, dk, dv, None if parts is None else parts.sum(2)
