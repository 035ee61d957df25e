"""Flow between groups of positions from (q, k, v, dO, LSE): F_h[a,b] = Σ |S_h[i,j]| over i in a and j in b.

A program loops over the keys of a tile of queries of one head. A tile without a query in a group returns at once,
unless the matrix total is requested. SSD uses the same kernel (`ssd/saliency.py`); its mixing is a compile-time
choice.
"""

from functools import partial

import torch
import triton
import triton.language as tl

from symground.kernels.attention.launch import Call
from symground.kernels.attention.mixing import load_gate, load_slope, load_terms, mixing
from symground.kernels.attention.row_sums import normalized
from symground.kernels.common.configs import Config, Tiles
from symground.kernels.common.flow import add_flow, groups_of, store_flow
from symground.kernels.common.launch import Launch, cdiv, config_of, rows_adjacent
from symground.kernels.common.masks import keys_of, load_range, seen
from symground.kernels.common.tiles import load_tile, product

#: Config(BM, BN, warps, stages) by architecture and element size, then by the largest BLOCK_D (`common/configs.py`).
TILES: dict[str, Tiles] = {
    "attention_flow": {
        ("sm_80", 2): {64: Config(128, 32, 4, 3), 128: Config(128, 32, 8, 2), 256: Config(64, 32, 4, 2)},
        ("sm_80", 4): {
            32: Config(64, 32, 4, 2), 64: Config(64, 16, 4, 2), 128: Config(32, 16, 4, 1), 256: Config(32, 64, 8, 1)},
        ("sm_86", 2): {64: Config(64, 64, 4, 2), 128: Config(64, 32, 4, 1), 256: Config(64, 32, 4, 2)},
        ("sm_86", 4): {
            32: Config(64, 32, 4, 2), 64: Config(64, 16, 4, 2), 128: Config(16, 16, 4, 1), 256: Config(16, 64, 8, 1)},
        ("sm_90", 2): {64: Config(128, 64, 4, 3), 128: Config(128, 32, 8, 2), 256: Config(64, 32, 4, 2)},
        ("sm_90", 4): {64: Config(128, 64, 8, 3), 128: Config(64, 32, 4, 2), 256: Config(32, 64, 8, 1)},
        ("sm_100", 2): {64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 3), 256: Config(64, 64, 4, 2)},
        ("sm_100", 4): {64: Config(64, 64, 8, 2), 128: Config(32, 16, 4, 1), 256: Config(32, 64, 8, 1)},
        ("gfx942", 2): {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        ("gfx942", 4): {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
        ("sm_90, lighter", 4): {128: Config(32, 16, 4, 1), 256: Config(16, 64, 8, 1)},
        ("sm_100, lighter", 4): {256: Config(32, 16, 8, 1)},
    },
}  # fmt: skip


#: Numbers in the parts that are allocated at a time: longer sequences are processed in chunks of query tiles.
PARTS = 2**24


@triton.jit
def _flow_through(
    b_flow, b_total, b_q, b_grad, b_high, b_low, q, k, v, grad, p_terms, p_groups, first_group, start, end, o_i, gate,
    how, mask, T, S,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, DECAY: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, CHUNK_V: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    for j in range(start, end, BN):
        o_j = j + tl.arange(0, BN)
        b_k = load_tile(k, o_j, D, BLOCK_D, MASKED)  # [BN,D]
        b_v = load_tile(v, o_j, DV, BLOCK_DV, MASKED)  # [BN,DV]
        b_s = product(b_q, b_k, q, k, o_i, o_j, D, BLOCK_D, CHUNK, PRECISION)  # [BM,BN]
        b_p = mixing(b_s, b_high, b_low, p_terms, o_i, o_j, T, S, how, DECAY)
        b_dp = product(b_grad, b_v, grad, v, o_i, o_j, DV, BLOCK_DV, CHUNK_V, PRECISION) * gate  # [BM,BN]
        b_s = tl.abs(b_p * b_dp)
        if MASKED:
            b_s = tl.where(seen(o_i[:, None], o_j[None, :], mask, CAUSAL), b_s, 0.0)
        b_flow, b_total = add_flow(b_flow, b_total, b_s, p_groups, first_group, o_j, mask[2])
    return b_flow, b_total


@triton.jit(do_not_specialize=["num_query_groups", "num_key_groups", "window", "first_tile", "n_i", "H", "T", "S"])
def attention_flow_kernel(
    p_q, p_k, p_v, p_grad, p_terms, p_gate, p_slopes, p_range, p_segments, p_blocks, p_query_groups, p_key_groups,
    p_flow, p_row_total, p_matrix_total, num_query_groups, num_key_groups,
    s_qb, s_qh, s_qt, s_qd, s_kb, s_kh, s_kt, s_kd, s_vb, s_vh, s_vt, s_vd, s_gb, s_gh, s_gt, s_gd,
    scale, softcap, window, first_tile, n_i, H, T, S,
    MATRIX: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, DECAY: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr,
    CHUNK_V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Parts [B,H,n_i,Gq,Gk], [B,H,n_i,Gq], [B,H,n_i]. Grid: (n_i query tiles from first_tile × H × B, key blocks).

    p_terms, D and DV as in `attention_saliency_kernel`.
    """
    i_program = tl.program_id(0)
    i_h = (i_program // n_i % H).to(tl.int64)
    i_b = (i_program // n_i // H).to(tl.int64)
    first_group = tl.program_id(1) * GROUPS
    first_i = (first_tile + i_program % n_i) * BM
    o_i = first_i + tl.arange(0, BM)
    low, high = load_range(p_range, i_b, S)
    mask = (S - T, low, high, window, p_segments, p_blocks, i_b * 2 * S, S)
    gate = load_gate(p_gate, i_b, i_h, H)
    how = (scale, softcap, p_slopes, load_slope(p_slopes, i_h))
    b_group = tl.load(p_query_groups + i_b * T + o_i, mask=o_i < T, other=-1).to(tl.int32)
    start, full_first, full_last, end = keys_of(first_i, first_i + BM, o_i, mask, CAUSAL, BN)
    idle = gate == 0.0
    if not MATRIX:
        idle = idle | (tl.max(b_group, 0) < 0)
    if idle:
        start, full_first, full_last, end = 0, 0, 0, 0
    p_key_groups += i_b * S
    i_q = i_h // GROUP if DECAY else i_h
    i_v = i_h if DECAY else i_h // GROUP
    q = (p_q + i_b * s_qb + i_q * s_qh, s_qt, s_qd, 0, T)
    k = (p_k + i_b * s_kb + i_h // GROUP * s_kh, s_kt, s_kd, low, high)
    v = (p_v + i_b * s_vb + i_v * s_vh, s_vt, s_vd, low, high)
    grad = (p_grad + i_b * s_gb + i_h * s_gh, s_gt, s_gd, 0, T)
    b_q = load_tile(q, o_i, D, BLOCK_D, True)  # [BM,D]
    b_grad = load_tile(grad, o_i, DV, BLOCK_DV, True)  # [BM,DV]
    p_terms += (i_b * H + i_h) * T * (4 if DECAY else 1)
    b_high, b_low = load_terms(p_terms, o_i, T, DECAY)
    b_flow = tl.zeros([BM, GROUPS], tl.float32)
    b_total = tl.zeros([BM], tl.float32)
    if p_range is not None or window is not None:
        b_flow, b_total = _flow_through(
            b_flow, b_total, b_q, b_grad, b_high, b_low, q, k, v, grad, p_terms, p_key_groups, first_group,
            start, full_first, o_i, gate, how, mask, T, S, True, CAUSAL, DECAY, D, BLOCK_D, CHUNK, DV, BLOCK_DV,
            CHUNK_V, BN, PRECISION,
        )  # fmt: skip
    b_flow, b_total = _flow_through(
        b_flow, b_total, b_q, b_grad, b_high, b_low, q, k, v, grad, p_terms, p_key_groups, first_group,
        full_first, full_last, o_i, gate, how, mask, T, S, False, CAUSAL, DECAY, D, BLOCK_D, CHUNK, DV, BLOCK_DV,
        CHUNK_V, BN, PRECISION,
    )  # fmt: skip
    b_flow, b_total = _flow_through(
        b_flow, b_total, b_q, b_grad, b_high, b_low, q, k, v, grad, p_terms, p_key_groups, first_group,
        full_last, end, o_i, gate, how, mask, T, S, True, CAUSAL, DECAY, D, BLOCK_D, CHUNK, DV, BLOCK_DV,
        CHUNK_V, BN, PRECISION,
    )  # fmt: skip
    i_part = i_program.to(tl.int64)
    store_flow(
        p_flow, p_row_total, i_part, b_flow, b_total, b_group, first_group, num_query_groups, num_key_groups, GROUPS
    )
    if MATRIX:
        tl.store(p_matrix_total + i_part, tl.sum(b_total, 0), mask=first_group == 0)


def attention_flow(
    call: Call,
    grad_out: torch.Tensor,
    lse: torch.Tensor,
    query_groups: torch.Tensor,
    key_groups: torch.Tensor,
    num_query_groups: int,
    num_key_groups: int,
    matrix: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """F [B,H,Gq,Gk], row_total [B,H,Gq] and, with ``matrix``, matrix_total [B,H] (0 without), float32."""
    q, k, v = call.q, call.k, call.v
    heads = (call.B, call.H)
    groups = (query_groups.contiguous(), key_groups.contiguous())
    grad_out, lse = rows_adjacent(grad_out), lse.contiguous()
    of_program = groups_of(num_key_groups)
    blocks = max(1, cdiv(num_key_groups, of_program))
    of_tile = call.B * call.H * max(1, num_query_groups * num_key_groups)

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(*heads, *shape, dtype=torch.float32, device=q.device)

    def prepared(config: Config, of_grad: tuple[int, ...], first: int, n_i: int) -> Launch:
        counts, sizes = (num_query_groups, num_key_groups), (*call.sizes[:3], first, n_i, *call.sizes[3:])
        return Launch(
            attention_flow_kernel, (n_i * call.H * call.B, blocks), (*counts, *call.strides, *of_grad, *sizes),
            MATRIX=matrix, GROUPS=of_program, DECAY=False, **call.fixed, **config.kwargs,
        )  # fmt: skip

    def run(config: Config) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sums = (zeros(num_query_groups, num_key_groups), zeros(num_query_groups), zeros())
        tiles = cdiv(call.T, config.BM)
        (grad,) = normalized(call, config, lse, grad_out, wanted=None if matrix else groups[0] >= 0)
        together = max(1, min(tiles, PARTS // of_tile))
        for first in range(0, tiles, together):
            n_i = min(together, tiles - first)
            parts = [torch.empty(*heads, n_i, *x.shape[2:], dtype=torch.float32, device=q.device) for x in sums]
            key = ("flow", config, num_query_groups, num_key_groups, grad.stride(), first, n_i, matrix)
            launch = call.once(key, partial(prepared, config, grad.stride(), first, n_i))
            launch(q, k, v, grad, lse, *call.given, *groups, *parts)
            for total, part in zip(sums[: 2 + matrix], parts, strict=False):
                total += part.sum(2)
        return sums

    if not q.numel() or not call.S:
        return zeros(num_query_groups, num_key_groups), zeros(num_query_groups), zeros()
    return run(config_of("attention_flow", TILES, call.widest, call, run, call.bends))
