"""SSD, forward, in chunks: what each chunk adds to the state, the states before each chunk, the outputs.

Source: Dao and Gu 2024 ("Transformers are SSMs"), section 6. There are three kernels, in time linear in T, and no two
programs write to the same address. The backward pass uses the first two, too, from the last chunk to the first.
"""

import torch
import triton
import triton.language as tl

from symground.kernels.common.configs import Config, Tiles
from symground.kernels.common.launch import CHUNK_BYTES, cdiv, config_of, launch, power_of_2, precision_of
from symground.kernels.common.masks import load_range
from symground.kernels.common.tiles import load_part
from symground.kernels.ssd.launch import Call

#: Config(BM, BN, warps, stages) by architecture and bytes of an element (`common/configs.py`).
#: BM is the length of a chunk, also in the backward pass; BN is the part of the state that a program computes.
TILES: dict[str, Tiles] = {
    "ssd_forward": {
        ("cuda", 2): Config(64, 64, 8, 1),
        ("cuda", 4): Config(32, 32, 4, 1),
        ("sm_86", 2): Config(32, 64, 4, 1),
        ("gfx942", 2): Config(64, 32, 4, 1),
        ("gfx942", 4): Config(32, 32, 4, 1),
    },
}  # fmt: skip


#: Numbers of a state that one program carries from chunk to chunk.
PASSED = 1024


@triton.jit(do_not_specialize=["T", "n_c", "n_p", "n_n", "H"])
def ssd_states_kernel(
    p_x, p_b, p_weights, p_range, p_states,
    s_xb, s_xt, s_xh, s_xd, s_bb, s_bt, s_bg, s_bd, T, n_c, n_p, n_n, H,
    GROUP: tl.constexpr, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """states [B,chunks,H,P,N]: Σ over a chunk of weights[t] · x[t] ⊗ b[t]. Grid: parts of N × of P × chunks × H × B.

    weights [B,H,T'] float32 are 0 at positions that add nothing.
    """
    i_program = tl.program_id(0)
    o_n = i_program % n_n * BN + tl.arange(0, BN)
    o_p = i_program // n_n % n_p * BP + tl.arange(0, BP)
    i_c = i_program // n_n // n_p % n_c
    i_h = (i_program // n_n // n_p // n_c % H).to(tl.int64)
    i_b = (i_program // n_n // n_p // n_c // H).to(tl.int64)
    low, high = load_range(p_range, i_b, T)
    o_t = i_c * BM + tl.arange(0, BM)
    b_x = load_part((p_x + i_b * s_xb + i_h * s_xh, s_xt, s_xd, low, high), o_t, o_p, P)  # [BM,BP]
    b_b = load_part((p_b + i_b * s_bb + i_h // GROUP * s_bg, s_bt, s_bd, low, high), o_t, o_n, N)  # [BM,BN]
    b_weights = tl.load(p_weights + (i_b * H + i_h) * n_c * BM + o_t)
    b_x = (b_x * b_weights[:, None]).to(b_b.dtype)
    b_state = tl.dot(tl.trans(b_x), b_b, input_precision=PRECISION)  # [BP,BN]
    p_tile = p_states + ((i_b * n_c + i_c) * H + i_h) * P * N + o_p.to(tl.int64)[:, None] * N + o_n[None, :]
    tl.store(p_tile, b_state, mask=(o_p < P)[:, None] & (o_n < N)[None, :])


@triton.jit(do_not_specialize=["n_c", "n_blocks", "H"])
def ssd_pass_kernel(
    p_states, p_whole, p_first, p_last, n_c, n_blocks, H, NUMBERS: tl.constexpr, BACK: tl.constexpr, BLOCK: tl.constexpr
):
    """Replace what each chunk adds, states [B,chunks,H,P·N], by the state before it; last [B,H,P·N] is the final state.

    Grid: blocks of a state × H × B. With ``BACK`` the chunks are processed from the last to the first.
    """
    i_program = tl.program_id(0)
    o_s = i_program % n_blocks * BLOCK + tl.arange(0, BLOCK)
    i_h = (i_program // n_blocks % H).to(tl.int64)
    i_b = (i_program // n_blocks // H).to(tl.int64)
    m_s = o_s < NUMBERS
    b_state = tl.zeros([BLOCK], tl.float32)
    if p_first is not None:
        b_state = tl.load(p_first + (i_b * H + i_h) * NUMBERS + o_s, mask=m_s, other=0.0)
    for n in range(n_c):
        i_c = n_c - 1 - n if BACK else n
        p_own = p_states + ((i_b * n_c + i_c) * H + i_h) * NUMBERS + o_s
        b_added = tl.load(p_own, mask=m_s, other=0.0)
        tl.store(p_own, b_state, mask=m_s)
        b_state = b_state * tl.load(p_whole + (i_b * H + i_h) * n_c + i_c) + b_added
    tl.store(p_last + (i_b * H + i_h) * NUMBERS + o_s, b_state, mask=m_s)


@triton.jit
def chunk_decay(p_high, p_low, o_t):
    """exp(decay of i - decay of j) within a chunk [BM,BM], 0 where j > i."""
    b_high = tl.load(p_high + o_t)
    b_low = tl.load(p_low + o_t)
    b_x = (b_high[:, None] - b_high[None, :]) + (b_low[:, None] - b_low[None, :])
    # Masked before exp: above the diagonal exp would be inf.
    return tl.exp(tl.where(o_t[:, None] >= o_t[None, :], b_x, float("-inf")))


@triton.jit(do_not_specialize=["T", "n_c", "n_p", "H"])
def ssd_output_kernel(
    p_x, p_b, p_c, p_states, p_high, p_low, p_dt, p_upto, p_range, p_y,
    s_xb, s_xt, s_xh, s_xd, s_bb, s_bt, s_bg, s_bd, s_cb, s_ct, s_cg, s_cd, T, n_c, n_p, H,
    GROUP: tl.constexpr, P: tl.constexpr, N: tl.constexpr, BP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y [B,T,H,P], contiguous. Grid: parts of P × chunks × H × B."""
    i_program = tl.program_id(0)
    o_p = i_program % n_p * BP + tl.arange(0, BP)
    i_c = i_program // n_p % n_c
    i_h = (i_program // n_p // n_c % H).to(tl.int64)
    i_b = (i_program // n_p // n_c // H).to(tl.int64)
    low, high = load_range(p_range, i_b, T)
    o_t = i_c * BM + tl.arange(0, BM)
    b = (p_b + i_b * s_bb + i_h // GROUP * s_bg, s_bt, s_bd, low, high)
    c = (p_c + i_b * s_cb + i_h // GROUP * s_cg, s_ct, s_cd, 0, T)
    state = (p_states + ((i_b * n_c + i_c) * H + i_h) * P * N, N, 1, 0, P)
    b_s = tl.zeros([BM, BM], tl.float32)
    b_y = tl.zeros([BM, BP], tl.float32)
    for n in range(0, N, BN):
        o_n = n + tl.arange(0, BN)
        b_c = load_part(c, o_t, o_n, N)  # [BM,BN]
        b_s = tl.dot(b_c, tl.trans(load_part(b, o_t, o_n, N)), b_s, input_precision=PRECISION)
        b_state = load_part(state, o_p, o_n, N).to(b_c.dtype)  # [BP,BN]
        b_y = tl.dot(b_c, tl.trans(b_state), b_y, input_precision=PRECISION)
    column = (i_b * H + i_h) * n_c * BM
    b_y *= tl.load(p_upto + column + o_t)[:, None]
    b_m = b_s * chunk_decay(p_high + column, p_low + column, o_t) * tl.load(p_dt + column + o_t)[None, :]
    b_x = load_part((p_x + i_b * s_xb + i_h * s_xh, s_xt, s_xd, low, high), o_t, o_p, P)  # [BM,BP]
    b_y = tl.dot(b_m.to(b_x.dtype), b_x, b_y, input_precision=PRECISION)
    p_tile = p_y + ((i_b * T + o_t[:, None]) * H + i_h) * P + o_p[None, :]
    tl.store(p_tile, b_y.to(p_y.dtype.element_ty), mask=(o_t < T)[:, None] & (o_p < P)[None, :])


def block_of_part(size: int, most: int) -> int:
    """A power of two, large enough for a dot and at most ``most``."""
    return max(16, min(most, power_of_2(size)))


def part_of(x: torch.Tensor) -> int:
    """Columns of a head that a program computes at a time."""
    return block_of_part(x.shape[3], CHUNK_BYTES // x.element_size())


def added_states(
    x: torch.Tensor, b: torch.Tensor, weights: torch.Tensor, key_range: torch.Tensor | None, group: int, config: Config
) -> torch.Tensor:
    """[B,chunks,H,P,N] float32: each chunk's addition to the state."""
    (batch, length, heads, size), state = x.shape, b.shape[3]
    chunks = cdiv(length, config.BM)
    part, own = part_of(x), block_of_part(state, config.BN)
    n_p, n_n = cdiv(size, part), cdiv(state, own)
    states = torch.empty(batch, chunks, heads, size, state, dtype=torch.float32, device=x.device)
    launch(
        ssd_states_kernel, (n_n * n_p * chunks * heads * batch,), (x, b, weights, key_range, states),
        (*x.stride(), *b.stride(), length, chunks, n_p, n_n, heads), GROUP=group,
        P=size, N=state, BP=part, PRECISION=precision_of(x), **{**config.kwargs, "BN": own},
    )  # fmt: skip
    return states


def pass_states(
    states: torch.Tensor, whole: torch.Tensor, first: torch.Tensor | None, back: bool = False
) -> torch.Tensor:
    """Replace ``states`` by the states before each chunk, in place; returns the final state, [B,H,P,N] float32."""
    batch, chunks, heads, size, state = states.shape
    last = torch.empty(batch, heads, size, state, dtype=torch.float32, device=states.device)
    first = None if first is None else first.float().contiguous()
    blocks = cdiv(size * state, PASSED)
    launch(
        ssd_pass_kernel, (blocks * heads * batch,), (states, whole, first, last), (chunks, blocks, heads),
        NUMBERS=size * state, BACK=back, BLOCK=PASSED, num_warps=4,
    )  # fmt: skip
    return last


def ssd_forward(call: Call, initial_state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """y [B,T,H,P] in the dtype of x, and the final state [B,H,P,N] float32."""
    batch, length, heads, size, _, state = call.sizes
    y = torch.empty(call.x.shape, dtype=call.x.dtype, device=call.x.device)

    def run(config: Config) -> torch.Tensor:
        columns = call.columns(config.BM)
        states = added_states(call.x, call.b, columns.writes, call.key_range, call.group, config)
        last = pass_states(states, columns.whole, initial_state)
        part, own = part_of(call.x), block_of_part(state, config.BN)
        chunks, n_p = states.shape[1], cdiv(size, part)
        tensors = (
            call.x, call.b, call.c, states, columns.high, columns.low, columns.dt, columns.upto, call.key_range, y,
        )  # fmt: skip
        launch(
            ssd_output_kernel, (n_p * chunks * heads * batch,), tensors,
            (*call.x.stride(), *call.b.stride(), *call.c.stride(), length, chunks, n_p, heads), GROUP=call.group,
            P=size, N=state, BP=part, PRECISION=precision_of(call.x),
            **{**config.kwargs, "BN": own},
        )  # fmt: skip
        return last

    return y, run(config_of("ssd_forward", TILES, call.b, call, run))
