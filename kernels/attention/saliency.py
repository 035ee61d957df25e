"""Layer saliency from (q, k, v, dO, LSE): I = |Σ_h g_h · A_h ∘ (dO_h V_hᵀ)|, tile by tile, looping over heads inside.

A program has one tile [BM,BN] of one example, loops over the heads and stores once. No tile depends on another.
SSD uses the same kernel (`ssd/saliency.py`): q is C and k is B, both shared by a group of heads, v is x, and M takes
the place of A. This is chosen at compile time.
"""

import torch
import triton
import triton.language as tl

from symground.kernels.attention.launch import Call
from symground.kernels.attention.mixing import load_gate, load_slope, load_terms, mixing
from symground.kernels.attention.row_sums import normalized
from symground.kernels.common.configs import Config, Tiles
from symground.kernels.common.launch import Launch, cdiv, chunk_of, config_of, processors, rows_adjacent
from symground.kernels.common.masks import keys_of, load_range, seen
from symground.kernels.common.tiles import product_in_chunks

#: Config(BM, BN, warps, stages) by architecture and element size, then by the largest BLOCK_D (`common/configs.py`).
TILES: dict[str, Tiles] = {
    "attention_saliency": {
        ("sm_80", 2): {64: Config(128, 64, 4, 2), 128: Config(128, 64, 8, 2), 256: Config(64, 64, 8, 2)},
        ("sm_80", 4): {128: Config(32, 32, 4, 1), 256: Config(32, 64, 8, 1)},
        ("sm_86", 2): {64: Config(64, 64, 4, 2), 128: Config(64, 32, 4, 2), 256: Config(32, 32, 4, 1)},
        ("sm_86", 4): {64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(16, 64, 8, 1)},
        ("sm_90", 2): {64: Config(128, 128, 8, 2), 128: Config(128, 64, 8, 2), 256: Config(64, 64, 8, 1)},
        ("sm_90", 4): {64: Config(128, 64, 8, 2), 128: Config(64, 64, 8, 2), 256: Config(64, 32, 8, 1)},
        ("sm_100", 2): {
            32: Config(128, 128, 8, 3), 64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 2),
            256: Config(128, 64, 8, 1)},
        ("sm_100", 4): {
            32: Config(128, 64, 8, 2), 64: Config(64, 64, 8, 1), 128: Config(64, 32, 8, 1), 256: Config(16, 64, 8, 1)},
        ("gfx942", 2): {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        ("gfx942", 4): {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
    },
}  # fmt: skip


#: With fewer programs per processor than this, the heads are split over several programs.
WAVES = 2


# S stays specialised: if it is a multiple of 16, stores are 16 bytes wide.
@triton.jit(do_not_specialize=["window", "n_i", "n_j", "splits", "H", "T"])
def attention_saliency_kernel(
    p_q, p_k, p_v, p_grad, p_terms, p_gate, p_slopes, p_range, p_segments, p_blocks, p_open, p_count, p_total,
    s_qb, s_qh, s_qt, s_qd, s_kb, s_kh, s_kt, s_kd, s_vb, s_vh, s_vt, s_vd, s_gb, s_gh, s_gt, s_gd, s_ts, s_tb, s_tt,
    scale, softcap, window, n_i, n_j, splits, H, T, S,
    SIGNED: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, DECAY: tl.constexpr, D: tl.constexpr,
    CHUNK: tl.constexpr, DV: tl.constexpr, CHUNK_V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """total [splits,B,T,S]. Grid: key tiles × query tiles × splits of the heads × B.

    p_terms is lse [B,H,T], or SSD's decays [B,H,4,T] (`mixing` in attention/mixing.py). q and k have heads of size D,
    v and dO of size DV.
    p_open [B,H] lists each example's heads, first those whose gate is not 0; p_count [B] is the number of these.
    """
    i_program = tl.program_id(0)
    first_j = i_program % n_j * BN
    first_i = i_program // n_j % n_i * BM
    i_split = (i_program // n_j // n_i % splits).to(tl.int64)
    i_b = (i_program // n_j // n_i // splits).to(tl.int64)
    o_i = first_i + tl.arange(0, BM)
    o_j = first_j + tl.arange(0, BN)
    low, high = load_range(p_range, i_b, S)
    mask = (S - T, low, high, window, p_segments, p_blocks, i_b * 2 * S, S)
    count = H
    if p_gate is not None:
        count = tl.load(p_count + i_b).to(tl.int32)
    per_split = (count + splits - 1) // splits
    first_h = (i_split * per_split).to(tl.int32)
    last_h = tl.minimum(first_h + per_split, count)
    start, _, _, end = keys_of(first_i, tl.minimum(first_i + BM, T), o_i, mask, CAUSAL, BN)
    if (first_j < start) | (first_j >= end):  # no query of the tile sees a key of it: zeros are stored
        last_h = first_h
    b_total = tl.zeros([BM, BN], tl.float32)
    b_s = tl.zeros([BM, BN], tl.float32)
    for n in range(first_h, last_h):
        i_h = tl.cast(n, tl.int64)
        if p_gate is not None:
            i_h = tl.load(p_open + i_b * H + n).to(tl.int64)
        i_q = i_h // GROUP if DECAY else i_h
        i_v = i_h if DECAY else i_h // GROUP
        q = (p_q + i_b * s_qb + i_q * s_qh, s_qt, s_qd, 0, T)
        k = (p_k + i_b * s_kb + i_h // GROUP * s_kh, s_kt, s_kd, low, high)
        v = (p_v + i_b * s_vb + i_v * s_vh, s_vt, s_vd, low, high)
        grad = (p_grad + i_b * s_gb + i_h * s_gh, s_gt, s_gd, 0, T)
        p_head_terms = p_terms + (i_b * H + i_h) * T * (4 if DECAY else 1)
        b_high, b_low = load_terms(p_head_terms, o_i, T, DECAY)
        if DECAY:  # the heads of a group share C Bᵀ
            if (n == first_h) | (n % GROUP == 0):
                b_s = product_in_chunks(q, k, o_i, o_j, D, CHUNK, PRECISION)  # [BM,BN]
        else:
            b_s = product_in_chunks(q, k, o_i, o_j, D, CHUNK, PRECISION)  # [BM,BN]
        how = (scale, softcap, p_slopes, load_slope(p_slopes, i_h))
        b_p = mixing(b_s, b_high, b_low, p_head_terms, o_i, o_j, T, S, how, DECAY)
        b_dp = product_in_chunks(grad, v, o_i, o_j, DV, CHUNK_V, PRECISION)  # [BM,BN]
        if p_gate is not None:
            b_dp *= load_gate(p_gate, i_b, i_h, H)
        b_total += b_p * b_dp
    # Every head masks the same pairs, so masking the sum is enough.
    b_total = tl.where(seen(o_i[:, None], o_j[None, :], mask, CAUSAL), b_total, 0.0)
    if not SIGNED:
        b_total = tl.abs(b_total)
    p_tile = p_total + i_split * s_ts + i_b * s_tb + o_i.to(tl.int64)[:, None] * s_tt + o_j[None, :]
    tl.store(p_tile, b_total, mask=(o_i < T)[:, None] & (o_j < S)[None, :])


def attention_saliency(call: Call, grad_out: torch.Tensor, lse: torch.Tensor, signed: bool) -> torch.Tensor:
    """[B,T,S] float32."""
    q, k, v = call.q, call.k, call.v
    grad_out, lse = rows_adjacent(grad_out), lse.contiguous()
    heads = count = None
    if call.gate is not None:
        closed = call.gate == 0
        heads = closed.int().argsort(dim=1, stable=True).int()
        count = (~closed).sum(1, dtype=torch.int32)

    def run(config: Config) -> torch.Tensor:
        n_i, n_j = cdiv(call.T, config.BM), cdiv(call.S, config.BN)
        busy = n_i * n_j * call.B / (2 if call.causal else 1)
        splits = max(1, min(call.H, int(WAVES * processors(q.device) / max(1, busy))))
        (grad,) = normalized(call, config, lse, grad_out, chunk=chunk_of(q))
        of_heads = () if splits == 1 else (splits,)
        total = torch.empty((*of_heads, call.B, call.T, call.S), dtype=torch.float32, device=q.device)

        def prepared() -> Launch:
            fixed = {**call.fixed, "CHUNK": chunk_of(q), "CHUNK_V": chunk_of(v), **config.kwargs}
            del fixed["BLOCK_D"], fixed["BLOCK_DV"]  # rows are read in chunks, never whole
            of_total = (call.B * call.T * call.S, call.T * call.S, call.S)
            numbers = (*grad.stride(), *of_total, *call.sizes[:3], n_i, n_j, splits, *call.sizes[3:])
            return Launch(
                attention_saliency_kernel, (n_i * n_j * splits * call.B,), (*call.strides, *numbers),
                SIGNED=signed or splits > 1, DECAY=False, **fixed,
            )  # fmt: skip

        launch = call.once(("saliency", config, grad.stride(), splits, signed), prepared)
        launch(q, k, v, grad, lse, *call.given, heads, count, total)
        if splits == 1:
            return total
        total = total.sum(0)
        return total if signed else total.abs_()

    if not call.B * call.H * call.T * call.S:
        return torch.zeros(call.B, call.T, call.S, dtype=torch.float32, device=q.device)
    return run(config_of("attention_saliency", TILES, call.widest, call, run, call.bends))
