"""SSD, backward, in chunks: the gradients of the states, then dx with its terms for the decay's gradient, then dB, dC.

E is the decay within a chunk, e the decay from its start, f the decay to its end, h the state before the chunk, and dh
the gradient of the state after it. Then dm = dY xᵀ; ∂L/∂(x·dt) = (C Bᵀ ∘ E)ᵀ dY + f ∘ (B dhᵀ);
dC = (Σ E ∘ dm · dt) B + Σ e ∘ (dY h); dB = (Σ E ∘ dm · dt)ᵀ C + Σ f ∘ dt ∘ (x dh). The sums are over the heads of a
group, over which a program loops. The decay at position t multiplies every product of a query at or after t and a key
before t. The gradient of its dt·A is the sum of these terms, never a difference of sums over the whole length.
"""

import torch
import triton
import triton.language as tl

from symground.kernels.common.configs import Config, Tiles
from symground.kernels.common.launch import cdiv, config_of, launch, precision_of, rows_adjacent
from symground.kernels.common.masks import load_range
from symground.kernels.common.prefix_sums import prefix_sums
from symground.kernels.common.tiles import load_part
from symground.kernels.ssd.forward import TILES as FORWARD_TILES
from symground.kernels.ssd.forward import added_states, block_of_part, chunk_decay, part_of, pass_states
from symground.kernels.ssd.launch import Call, Columns

#: Config(BM, BN, warps, stages) by architecture and bytes of an element (`common/configs.py`).
TILES: dict[str, Tiles] = {
    "ssd_dx": {
        ("cuda", 2): Config(64, 64, 8, 1),
        ("cuda", 4): Config(32, 16, 4, 1),
        ("sm_86", 2): Config(32, 64, 4, 1),
        ("gfx942", 2): Config(64, 32, 4, 1),
        ("gfx942", 4): Config(32, 32, 4, 1),
    },
    "ssd_dbdc": {
        ("cuda", 2): Config(64, 32, 8, 1),
        ("cuda", 4): Config(32, 16, 4, 1),
        ("sm_86", 2): Config(32, 32, 4, 1),
        ("gfx942", 2): Config(64, 32, 4, 1),
        ("gfx942", 4): Config(32, 32, 4, 1),
    },
}  # fmt: skip


@triton.jit(do_not_specialize=["T", "n_c", "H"])
def ssd_dx_kernel(
    p_x, p_b, p_c, p_grad, p_after_states, p_high, p_low, p_dt, p_after, p_range, p_dx, p_own, p_pairs,
    p_written,
    s_xb, s_xt, s_xh, s_xd, s_bb, s_bt, s_bg, s_bd, s_cb, s_ct, s_cg, s_cd, s_gb, s_gt, s_gh, s_gd, T, n_c, H,
    GROUP: tl.constexpr, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """dx [B,T,H,P], contiguous, and three [B,H,T'] float32. Grid: chunks × H × B.

    own: ⟨∂L/∂(x·dt), x⟩.
    pairs: Σ M ∘ dm over the chunk's queries at or after the position and its keys before it.
    written: the terms from writing to the state.
    """
    i_program = tl.program_id(0)
    i_c = i_program % n_c
    i_h = (i_program // n_c % H).to(tl.int64)
    i_b = (i_program // n_c // H).to(tl.int64)
    low, high = load_range(p_range, i_b, T)
    o_t = i_c * BM + tl.arange(0, BM)
    b = (p_b + i_b * s_bb + i_h // GROUP * s_bg, s_bt, s_bd, low, high)
    c = (p_c + i_b * s_cb + i_h // GROUP * s_cg, s_ct, s_cd, 0, T)
    x = (p_x + i_b * s_xb + i_h * s_xh, s_xt, s_xd, low, high)
    grad = (p_grad + i_b * s_gb + i_h * s_gh, s_gt, s_gd, 0, T)
    state = (p_after_states + ((i_b * n_c + i_c) * H + i_h) * P * N, N, 1, 0, P)
    column = (i_b * H + i_h) * n_c * BM + o_t
    b_dt = tl.load(p_dt + column)
    b_m = tl.zeros([BM, BM], tl.float32)
    for n in range(0, N, BN):
        o_n = n + tl.arange(0, BN)
        b_b = load_part(b, o_t, o_n, N)  # [BM,BN]
        b_m = tl.dot(load_part(c, o_t, o_n, N), tl.trans(b_b), b_m, input_precision=PRECISION)
    b_m *= chunk_decay(p_high + (i_b * H + i_h) * n_c * BM, p_low + (i_b * H + i_h) * n_c * BM, o_t)
    b_dm = tl.zeros([BM, BM], tl.float32)
    for p in range(0, P, BP):
        o_p = p + tl.arange(0, BP)
        b_x = load_part(x, o_t, o_p, P)  # [BM,BP]
        b_dm = tl.dot(load_part(grad, o_t, o_p, P), tl.trans(b_x), b_dm, input_precision=PRECISION)
    b_pairs = tl.where(o_t[:, None] > o_t[None, :], b_m * b_dm * b_dt[None, :], 0.0)
    # A product with ones sums only the pairs that cross; a difference of prefix sums would keep the rounding of the
    # others.
    b_before = tl.where(o_t[:, None] < o_t[None, :], 1.0, 0.0)
    b_crossing = tl.dot(b_pairs, b_before, input_precision=SUMS)  # [BM,BM], each query's keys before each position
    tl.store(p_pairs + column, tl.sum(tl.where(o_t[:, None] >= o_t[None, :], b_crossing, 0.0), 0))
    b_after = tl.load(p_after + column)
    b_own = tl.zeros([BM], tl.float32)
    b_written = tl.zeros([BM], tl.float32)
    for p in range(0, P, BP):
        o_p = p + tl.arange(0, BP)
        b_dx = tl.zeros([BM, BP], tl.float32)
        for n in range(0, N, BN):
            o_n = n + tl.arange(0, BN)
            b_b = load_part(b, o_t, o_n, N)  # [BM,BN]
            b_state = load_part(state, o_p, o_n, N).to(b_b.dtype)  # [BP,BN]
            b_dx = tl.dot(b_b, tl.trans(b_state), b_dx, input_precision=PRECISION)
        b_dx *= b_after[:, None]
        b_x = load_part(x, o_t, o_p, P).to(tl.float32)  # [BM,BP]
        b_written += tl.sum(b_dx * b_x, 1)
        b_grad = load_part(grad, o_t, o_p, P)  # [BM,BP]
        b_dx = tl.dot(tl.trans(b_m.to(b_grad.dtype)), b_grad, b_dx, input_precision=PRECISION)
        b_own += tl.sum(b_dx * b_x, 1)
        p_tile = p_dx + ((i_b * T + o_t[:, None]) * H + i_h) * P + o_p[None, :]
        b_dx *= b_dt[:, None]
        tl.store(p_tile, b_dx.to(p_dx.dtype.element_ty), mask=(o_t < T)[:, None] & (o_p < P)[None, :])
    tl.store(p_own + column, b_own)
    tl.store(p_written + column, b_written * b_dt)


@triton.jit(do_not_specialize=["T", "n_c", "n_n", "H"])
def ssd_dbdc_kernel(
    p_x, p_b, p_c, p_grad, p_states, p_after_states, p_high, p_low, p_dt, p_upto, p_writes, p_range, p_db, p_dc, p_read,
    s_xb, s_xt, s_xh, s_xd, s_bb, s_bt, s_bg, s_bd, s_cb, s_ct, s_cg, s_cd, s_gb, s_gt, s_gh, s_gd, T, n_c, n_n, H,
    GROUP: tl.constexpr, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dB and dC [B,T,G,N], contiguous, and read [B,H,n_n,T'] float32, ⟨C, e ∘ (dY h)⟩ of each part.

    Grid: parts of N × chunks × G × B; a program loops over the heads of a group.
    """
    i_program = tl.program_id(0)
    i_n = i_program % n_n
    i_c = i_program // n_n % n_c
    i_g = (i_program // n_n // n_c % (H // GROUP)).to(tl.int64)
    i_b = (i_program // n_n // n_c // (H // GROUP)).to(tl.int64)
    low, high = load_range(p_range, i_b, T)
    o_t = i_c * BM + tl.arange(0, BM)
    o_n = i_n * BN + tl.arange(0, BN)
    b_b = load_part((p_b + i_b * s_bb + i_g * s_bg, s_bt, s_bd, low, high), o_t, o_n, N)  # [BM,BN]
    b_c = load_part((p_c + i_b * s_cb + i_g * s_cg, s_ct, s_cd, 0, T), o_t, o_n, N)  # [BM,BN]
    b_scores = tl.zeros([BM, BM], tl.float32)
    b_db = tl.zeros([BM, BN], tl.float32)
    b_dc = tl.zeros([BM, BN], tl.float32)
    for r in range(GROUP):
        i_h = i_g * GROUP + r
        x = (p_x + i_b * s_xb + i_h * s_xh, s_xt, s_xd, low, high)
        grad = (p_grad + i_b * s_gb + i_h * s_gh, s_gt, s_gd, 0, T)
        of_state = ((i_b * n_c + i_c) * H + i_h) * P * N
        column = (i_b * H + i_h) * n_c * BM
        b_dm = tl.zeros([BM, BM], tl.float32)
        b_read = tl.zeros([BM, BN], tl.float32)
        b_written = tl.zeros([BM, BN], tl.float32)
        for p in range(0, P, BP):
            o_p = p + tl.arange(0, BP)
            b_x = load_part(x, o_t, o_p, P)  # [BM,BP]
            b_grad = load_part(grad, o_t, o_p, P)  # [BM,BP]
            b_dm = tl.dot(b_grad, tl.trans(b_x), b_dm, input_precision=PRECISION)
            b_state = load_part((p_states + of_state, N, 1, 0, P), o_p, o_n, N).to(b_x.dtype)  # [BP,BN]
            b_read = tl.dot(b_grad, b_state, b_read, input_precision=PRECISION)
            b_state = load_part((p_after_states + of_state, N, 1, 0, P), o_p, o_n, N).to(b_x.dtype)  # [BP,BN]
            b_written = tl.dot(b_x, b_state, b_written, input_precision=PRECISION)
        b_dt = tl.load(p_dt + column + o_t)
        b_scores += b_dm * chunk_decay(p_high + column, p_low + column, o_t) * b_dt[None, :]
        b_read *= tl.load(p_upto + column + o_t)[:, None]
        b_dc += b_read
        b_db += b_written * tl.load(p_writes + column + o_t)[:, None]
        p_part = p_read + ((i_b * H + i_h) * n_n + i_n) * n_c * BM
        tl.store(p_part + o_t, tl.sum(b_read * b_c.to(tl.float32), 1))
    b_scores = b_scores.to(b_b.dtype)
    b_dc = tl.dot(b_scores, b_b, b_dc, input_precision=PRECISION)
    b_db = tl.dot(tl.trans(b_scores), b_c, b_db, input_precision=PRECISION)
    tile = ((i_b * T + o_t[:, None]) * (H // GROUP) + i_g) * N + o_n[None, :]
    m_tile = (o_t < T)[:, None] & (o_n < N)[None, :]
    tl.store(p_dc + tile, b_dc.to(p_dc.dtype.element_ty), mask=m_tile)
    tl.store(p_db + tile, b_db.to(p_db.dtype.element_ty), mask=m_tile)


def ssd_backward(
    call: Call, grad_y: torch.Tensor, grad_state: torch.Tensor | None, initial_state: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx, dB, dC in the dtype of x; ddt [B,T,H], dA [H] and the initial state's [B,H,P,N] in float32."""
    grad_y = rows_adjacent(grad_y)
    states_config = config_of("ssd_forward", FORWARD_TILES, call.b, call, lambda config: run_states(config))

    def run_states(config: Config) -> tuple[Columns, torch.Tensor, torch.Tensor, torch.Tensor]:
        columns = call.columns(config.BM)
        states = added_states(call.x, call.b, columns.writes, call.key_range, call.group, config)
        pass_states(states, columns.whole, initial_state)
        after = added_states(grad_y, call.c, columns.upto, None, call.group, config)
        return columns, states, after, pass_states(after, columns.whole, grad_state, back=True)

    columns, states, after, first = run_states(states_config)
    dx, own, pairs, written = _dx(call, grad_y, after, columns, states_config.BM)
    db, dc, read = _dbdc(call, grad_y, states, after, columns, states_config.BM)
    inner = (states * after).sum((-1, -2)).transpose(1, 2) * columns.whole  # [B,H,chunks]
    pairs, read, written = (z.unflatten(2, (-1, states_config.BM)) for z in (pairs, read, written))
    before = prefix_sums(torch.nn.functional.pad(written[..., :-1], (1, 0)))
    of_decay = pairs + prefix_sums(read, back=True) + before + inner[..., None]
    length = call.x.shape[1]
    of_decay = of_decay.flatten(2)[:, :, :length]  # [B,H,T], the gradient of dt · A
    dt = columns.dt[:, :, :length]
    ddt = own[:, :, :length] + of_decay * call.A.float()[:, None]
    if call.key_range is not None:
        t = torch.arange(length, device=dt.device)
        outside = (t < call.key_range[:, :1]) | (t >= call.key_range[:, 1:])
        ddt = ddt.masked_fill(outside[:, None], 0.0)
    return dx, ddt.transpose(1, 2), (of_decay * dt).sum((0, 2)), db, dc, first


def _sums(x: torch.Tensor) -> str:
    """The precision of float32 sums of pairs: that of the pairs themselves, which are products of x's elements."""
    exact = precision_of(x.new_empty(0, dtype=torch.float32))
    return "tf32" if exact == "tf32x3" and x.dtype != torch.float32 else exact


def _dx(
    call: Call, grad_y: torch.Tensor, after: torch.Tensor, columns: Columns, chunk: int
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    batch, length, heads, size, _, state = call.sizes
    dx = torch.empty(call.x.shape, dtype=call.x.dtype, device=call.x.device)
    sums = [torch.empty_like(columns.dt) for _ in range(3)]

    def run(config: Config) -> None:
        part, own = part_of(call.x), block_of_part(state, config.BN)
        tensors = (
            call.x, call.b, call.c, grad_y, after, columns.high, columns.low, columns.dt, columns.after, call.key_range,
            dx, *sums,
        )  # fmt: skip
        strides = (*call.x.stride(), *call.b.stride(), *call.c.stride(), *grad_y.stride())
        launch(
            ssd_dx_kernel, (after.shape[1] * heads * batch,), tensors, (*strides, length, after.shape[1], heads),
            GROUP=call.group, P=size, N=state, BP=part,
            PRECISION=precision_of(call.x), SUMS=_sums(call.x), **{**config.kwargs, "BM": chunk, "BN": own},
        )  # fmt: skip

    run(config_of("ssd_dx", TILES, call.b, call, run))
    return dx, *sums


def _dbdc(
    call: Call, grad_y: torch.Tensor, states: torch.Tensor, after: torch.Tensor, columns: Columns, chunk: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, length, heads, size, groups, state = call.sizes
    db, dc = (torch.empty(call.b.shape, dtype=call.x.dtype, device=call.x.device) for _ in range(2))

    def run(config: Config) -> torch.Tensor:
        part, own = part_of(call.x), block_of_part(state, config.BN)
        n_n = cdiv(state, own)
        read = torch.empty(batch, heads, n_n, columns.dt.shape[2], dtype=torch.float32, device=call.x.device)
        tensors = (
            call.x, call.b, call.c, grad_y, states, after, columns.high, columns.low, columns.dt, columns.upto,
            columns.writes, call.key_range, db, dc, read,
        )  # fmt: skip
        strides = (*call.x.stride(), *call.b.stride(), *call.c.stride(), *grad_y.stride())
        launch(
            ssd_dbdc_kernel, (n_n * after.shape[1] * groups * batch,), tensors,
            (*strides, length, after.shape[1], n_n, heads), GROUP=call.group,
            P=size, N=state, BP=part, PRECISION=precision_of(call.x),
            **{**config.kwargs, "BM": chunk, "BN": own},
        )  # fmt: skip
        return read

    read = run(config_of("ssd_dbdc", TILES, call.b, call, run))
    return db, dc, read.sum(2)
