"""Signed saliency of chosen queries, head by head: S_h[i,j] = g_h · A_h[i,j] · ⟨dO_h[i], V_h[j]⟩."""

import torch
import triton
import triton.language as tl

from symground.kernels.attention.launch import Call
from symground.kernels.attention.mixing import attention_of, load_gate, load_slope
from symground.kernels.attention.row_sums import row_sums
from symground.kernels.common.configs import Config, Tiles
from symground.kernels.common.launch import Launch, cdiv, config_of, rows_adjacent
from symground.kernels.common.masks import load_range, seen
from symground.kernels.common.tiles import LOG2E, load_tile, product

#: Config(BM, BN, warps, stages) by architecture and element size, then by the largest BLOCK_D (`common/configs.py`).
TILES: dict[str, Tiles] = {
    "attention_saliency_rows": {
        ("sm_80", 2): {64: Config(64, 128, 8, 1), 128: Config(64, 128, 8, 1), 256: Config(64, 128, 8, 1)},
        ("sm_80", 4): {64: Config(64, 128, 8, 1), 256: Config(32, 64, 8, 1)},
        ("sm_86", 2): {64: Config(64, 64, 4, 1), 128: Config(64, 32, 4, 1), 256: Config(32, 32, 4, 1)},
        ("sm_86", 4): {64: Config(32, 32, 4, 1), 128: Config(16, 16, 4, 1), 256: Config(32, 64, 8, 1)},
        ("sm_90", 2): {64: Config(64, 128, 8, 1), 128: Config(64, 128, 8, 1), 256: Config(64, 128, 8, 1)},
        ("sm_90", 4): {64: Config(64, 128, 8, 1), 128: Config(64, 128, 8, 1), 256: Config(32, 64, 8, 1)},
        ("sm_100", 2): {64: Config(64, 128, 8, 1), 128: Config(64, 128, 8, 1), 256: Config(64, 128, 8, 1)},
        ("sm_100", 4): {64: Config(64, 128, 8, 1), 256: Config(32, 64, 8, 1)},
        ("gfx942", 2): {64: Config(64, 64, 4, 1), 128: Config(64, 64, 4, 1), 256: Config(32, 32, 4, 1)},
        ("gfx942", 4): {64: Config(32, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(16, 16, 4, 1)},
        ("sm_90, lighter", 4): {256: Config(16, 64, 8, 1)},
        ("sm_100, lighter", 4): {256: Config(16, 64, 8, 1)},
    },
}  # fmt: skip


@triton.jit(do_not_specialize=["window", "R", "n_j", "H", "T"])
def attention_saliency_rows_kernel(
    p_q, p_k, p_v, p_grad, p_lse, p_gate, p_slopes, p_range, p_segments, p_blocks, p_rows, p_out,
    s_qb, s_qh, s_qt, s_qd, s_kb, s_kh, s_kt, s_kd, s_vb, s_vh, s_vt, s_vd, s_gb, s_gh, s_gt, s_gd, s_o,
    scale, softcap, window, R, n_j, H, T, S,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, CHUNK_V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out [B,H,R,S], contiguous. Grid: key tiles × tiles of chosen queries × H × B."""
    n_r = tl.cdiv(R, BM)
    i_program = tl.program_id(0)
    first_j = i_program % n_j * BN
    i_h = (i_program // n_j // n_r % H).to(tl.int64)
    i_b = (i_program // n_j // n_r // H).to(tl.int64)
    o_r = i_program // n_j % n_r * BM + tl.arange(0, BM)
    o_i = tl.load(p_rows + i_b * R + o_r, mask=o_r < R, other=T).to(tl.int32)  # T is no query: nothing is read
    o_j = first_j + tl.arange(0, BN)
    low, high = load_range(p_range, i_b, S)
    mask = (S - T, low, high, window, p_segments, p_blocks, i_b * 2 * S, S)
    offset = S - T
    gate = load_gate(p_gate, i_b, i_h, H)
    m_seen = seen(o_i[:, None], o_j[None, :], mask, CAUSAL)
    b_s = tl.zeros([BM, BN], tl.float32)
    if (tl.max(m_seen.to(tl.int32)) > 0) & (gate != 0.0):
        q = (p_q + i_b * s_qb + i_h * s_qh, s_qt, s_qd, 0, T)
        k = (p_k + i_b * s_kb + i_h // GROUP * s_kh, s_kt, s_kd, low, high)
        b_q = load_tile(q, o_i, D, BLOCK_D, True)  # [BM,D]
        b_k = load_tile(k, o_j, D, BLOCK_D, True)  # [BN,D]
        b_lse = tl.load(p_lse + (i_b * H + i_h) * T + o_i, mask=(o_i >= 0) & (o_i < T), other=float("inf")) * LOG2E
        b_s = product(b_q, b_k, q, k, o_i, o_j, D, BLOCK_D, CHUNK, PRECISION)  # [BM,BN]
        how = (scale, softcap, p_slopes, load_slope(p_slopes, i_h))
        b_p = attention_of(b_s, b_lse[:, None], o_i[:, None], o_j[None, :], offset, how)
        grad = (p_grad + i_b * s_gb + i_h * s_gh, s_gt, s_gd, 0, T)
        v = (p_v + i_b * s_vb + i_h // GROUP * s_vh, s_vt, s_vd, low, high)
        b_grad = load_tile(grad, o_i, DV, BLOCK_DV, True)  # [BM,DV]
        b_v = load_tile(v, o_j, DV, BLOCK_DV, True)  # [BN,DV]
        b_dp = product(b_grad, b_v, grad, v, o_i, o_j, DV, BLOCK_DV, CHUNK_V, PRECISION) * gate  # [BM,BN]
        b_s = tl.where(m_seen, b_p * b_dp, 0.0)
    p_tile = p_out + ((i_b * H + i_h) * R + o_r)[:, None] * s_o + o_j[None, :]
    tl.store(p_tile, b_s, mask=(o_r < R)[:, None] & (o_j < S)[None, :])


def attention_saliency_rows(call: Call, grad_out: torch.Tensor, lse: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[B,H,R,S] float32."""
    q, k, v, R = call.q, call.k, call.v, rows.shape[1]
    out = torch.empty((call.B, call.H, R, call.S), dtype=torch.float32, device=q.device)
    grad_out, rows, lse = rows_adjacent(grad_out), rows.contiguous(), lse.contiguous()

    def run(config: Config) -> None:
        def prepared() -> Launch:
            n_j = cdiv(call.S, config.BN)
            grid = (n_j * cdiv(R, config.BM) * call.H * call.B,)
            numbers = (*call.strides, *grad_out.stride(), call.S, *call.sizes[:3], R, n_j, *call.sizes[3:])
            return Launch(attention_saliency_rows_kernel, grid, numbers, **call.fixed, **config.kwargs)

        launch = call.once(("saliency_rows", config, R, grad_out.stride()), prepared)
        launch(q, k, v, grad_out, lse, *call.given, rows, out)
        if q.dtype == torch.float32:
            out.div_(row_sums(call, config, lse, rows)[..., None])

    if out.numel():
        run(config_of("attention_saliency_rows", TILES, call.widest, call, run, call.bends))
    return out
