"""The mixing matrix of a tile from its products q kᵀ: softmax attention, or SSD's decay, chosen at compile time.

Logits are in base 2. How they are made of the products is a tuple (scale, softcap, p_slopes, slope), with the slope of
`load_slope`: the logit is ⟨q, k⟩ · scale; with a softcap tanh(that / softcap) · softcap; with ALiBi's slope in addition
slope · (j - (i + S - T)). What a call leaves out is None in it, and costs nothing.
"""

import triton
import triton.language as tl

from symground.kernels.common.tiles import LOG2E


@triton.jit
def tanh(x):
    """Within a few units in the last place, also near 0, where 1 - exp(-2x) would cancel."""
    b_power = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    b_far = (1.0 - b_power) / (1.0 + b_power)
    b_square = x * x
    b_near = 1.0 + b_square * (-1 / 3 + b_square * (2 / 15 + b_square * (-17 / 315 + b_square * (62 / 2835))))
    return tl.where(tl.abs(x) < 0.25, x * b_near, tl.where(x < 0.0, -b_far, b_far))


@triton.jit
def load_gate(p_gate, i_b, i_h, H):
    """The gate of head i_h in example i_b, from [B,H]."""
    gate = 1.0
    if p_gate is not None:
        gate = tl.load(p_gate + i_b * H + i_h)
    return gate


@triton.jit
def load_slope(p_slopes, i_h):
    """The slope of head i_h in base 2."""
    slope = 0.0
    if p_slopes is not None:
        slope = tl.load(p_slopes + i_h) * LOG2E
    return slope


@triton.jit
def bent(b_s, o_i, o_j, offset, how):
    """Products → logits, but for a factor that a maximum may precede: `left_of`. o_i and o_j broadcast."""
    scale, softcap, p_slopes, slope = how
    if softcap is not None:
        b_s = tanh(b_s * (scale / softcap)) * (softcap * LOG2E)
    elif p_slopes is not None:
        b_s = b_s * (scale * LOG2E)
    if p_slopes is not None:
        b_s += slope * (o_j - o_i - offset).to(tl.float32)
    return b_s


@triton.jit
def left_of(how):
    """The factor that `bent` leaves."""
    scale, softcap, p_slopes, _ = how
    factor = scale * LOG2E
    if softcap is not None or p_slopes is not None:
        factor = 1.0
    return factor


@triton.jit
def attention_of(b_s, b_lse, o_i, o_j, offset, how):
    """A's tile from its products and the queries' base-2 log-sum-exp; all broadcast."""
    return tl.exp2(bent(b_s, o_i, o_j, offset, how) * left_of(how) - b_lse)


@triton.jit
def through_cap(b_ds, b_s, how):
    """The gradient of the logits → that of ⟨q, k⟩ · scale: with a softcap, 1 - tanh² of it."""
    scale, softcap, _, _ = how
    if softcap is not None:
        b_tanh = tanh(b_s * (scale / softcap))
        b_ds = b_ds * (1.0 - b_tanh * b_tanh)
    return b_ds


@triton.jit
def load_terms(p_terms, o_i, T, DECAY: tl.constexpr):
    """The queries' term of the mixing: the log-sum-exp for softmax; the decay, in two parts, for SSD."""
    if DECAY:
        b_high = tl.load(p_terms + o_i, mask=o_i < T, other=0.0)
        b_low = tl.load(p_terms + T + o_i, mask=o_i < T, other=0.0)
    else:
        b_high = load_lse2(p_terms, o_i, T)
        b_low = b_high
    return b_high, b_low


@triton.jit
def mixing(b_s, b_high, b_low, p_terms, o_i, o_j, T, S, how, DECAY: tl.constexpr):
    """The mixing matrix's tile from its products: A = exp2(logit - lse), or M = s · exp2(decay of i - decay of j).

    For SSD, p_terms is [4,T] in base 2: first the decay from the start as the sum of two float32 numbers, high and low,
    whose differences are exact where those of one float32 number are not; then this decay less log2 dt (+inf at dt 0).
    """
    if DECAY:
        p_from = p_terms + 2 * tl.cast(T, tl.int64)
        b_from = tl.load(p_from + o_j, mask=o_j < S, other=float("inf"))
        b_rest = tl.load(p_from + T + o_j, mask=o_j < S, other=0.0)
        b_x = (b_high[:, None] - b_from[None, :]) + (b_low[:, None] - b_rest[None, :])
        # Above the diagonal the exponent is positive. The result is masked, but must not be inf: inf · 0 is NaN.
        b_mixed = b_s * tl.exp2(tl.minimum(b_x, 64.0))
    else:
        b_mixed = attention_of(b_s, b_high[:, None], o_i[:, None], o_j[None, :], S - T, how)
    return b_mixed


@triton.jit
def load_lse2(p_lse, o_i, T):
    """Base-2 log-sum-exp of queries o_i; +inf if there is none, so that exp2(s - inf) is 0 and never NaN."""
    b_lse = tl.load(p_lse + o_i, mask=o_i < T, other=float("-inf"))
    return tl.where(b_lse == float("-inf"), float("inf"), b_lse * LOG2E)
