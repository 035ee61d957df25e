"""Which keys a query sees, and the bounds of a kernel's loop over the keys or queries that see each other.

A mask is a tuple (offset, low, high, window, p_segments, p_blocks, p_ids, S), beside CAUSAL: offset is S - T, since the
T queries are the last of the S keys' positions; low and high are of `load_range`; p_ids is where the spans of the
example begin. What a call leaves out is None in it, and costs nothing. A kernel puts it together itself, because no
function of Triton 3.6 returns None.

Spans [B,2,S] say which positions have the same id: for each position the first and one past the last with its id, which
may also have others between them. Two positions have the same id if their first is the same. Without an id they are S
and 0.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def load_range(p_range, i_b, S):
    """First and one-past-last valid key of example i_b, clamped to [0, S]."""
    low, high = 0, S
    if p_range is not None:
        low = tl.maximum(tl.load(p_range + i_b * 2).to(tl.int32), 0)
        high = tl.minimum(tl.load(p_range + i_b * 2 + 1).to(tl.int32), S)
    return low, high


@triton.jit
def _same_id(p_spans, o_i, o_j, S):
    """Whether positions o_i and o_j have the same id; the two broadcast."""
    b_i = tl.load(p_spans + o_i, mask=(o_i >= 0) & (o_i < S), other=S)
    b_j = tl.load(p_spans + o_j, mask=(o_j >= 0) & (o_j < S), other=S)
    return (b_i == b_j) & (b_i < S)


@triton.jit
def _span_of(p_spans, o_x, S):
    """First and one-past-last position that has an id of positions o_x."""
    m_x = (o_x >= 0) & (o_x < S)
    first = tl.min(tl.load(p_spans + o_x, mask=m_x, other=S), 0)
    last = tl.max(tl.load(p_spans + S + o_x, mask=m_x, other=0), 0)
    return first, last


@triton.jit
def seen(o_i, o_j, mask, CAUSAL: tl.constexpr):
    """Whether query o_i sees key o_j. The two broadcast, so either may be the rows."""
    offset, low, high, window, p_segments, p_blocks, p_ids, S = mask
    m_seen = o_i == o_i
    if CAUSAL:
        m_seen = m_seen & (o_j <= o_i + offset)
    if window is not None:
        m_seen = m_seen & (o_j > o_i + offset - window)
    if p_blocks is not None:
        m_seen = m_seen | _same_id(p_blocks + p_ids, o_i + offset, o_j, S)
    m_seen = m_seen & (o_j >= low) & (o_j < high)
    if p_segments is not None:
        m_seen = m_seen & _same_id(p_segments + p_ids, o_i + offset, o_j, S)
    return m_seen


@triton.jit
def keys_of(first_i, last_i, o_i, mask, CAUSAL: tl.constexpr, BN: tl.constexpr):
    """Bounds of the keys that queries o_i, of [first_i, last_i), see: start, full start, full end, end.

    Start and the full bounds are multiples of BN. Within the full bounds every query sees every key, so no mask is
    needed; the rest of [start, end) needs one. Without a key range and a window, start is full start.
    """
    offset, low, high, window, p_segments, p_blocks, p_ids, S = mask
    first, last, full_first, full_last = low, high, low, high
    if CAUSAL:
        last = tl.minimum(high, last_i + offset)
        full_last = tl.minimum(high, first_i + offset + 1)
    if window is not None:
        first = tl.maximum(low, first_i + offset - window + 1)
        full_first = tl.maximum(low, last_i + offset - window)
    if p_blocks is not None:
        first_seen, last_seen = _span_of(p_blocks + p_ids, o_i + offset, S)
        first = tl.maximum(low, tl.minimum(first, first_seen))
        last = tl.minimum(high, tl.maximum(last, last_seen))
    if p_segments is not None:
        first_seen, last_seen = _span_of(p_segments + p_ids, o_i + offset, S)
        first, last = tl.maximum(first, first_seen), tl.minimum(last, last_seen)
        full_last = full_first  # every tile is masked: a span may have other ids between its ends
    start = first // BN * BN
    full_first = (full_first + BN - 1) // BN * BN
    full_last = tl.maximum(full_last, 0) // BN * BN
    if full_last <= full_first:
        full_first = start
        full_last = start
    return start, full_first, full_last, last


@triton.jit
def queries_of(first_j, last_j, o_j, mask, T, CAUSAL: tl.constexpr, BM: tl.constexpr):
    """Bounds of the queries that see any of keys o_j, [first_j, last_j), as `keys_of` gives bounds of keys."""
    offset, low, high, window, p_segments, p_blocks, p_ids, S = mask
    first, last, full_first, full_last = 0, T, 0, T
    if CAUSAL:
        first = tl.maximum(0, first_j - offset)
        full_first = tl.maximum(0, last_j - 1 - offset)
    if window is not None:
        last = tl.minimum(T, last_j - 1 - offset + window)
        full_last = tl.minimum(T, first_j - offset + window)
    if p_blocks is not None:
        first_seen, last_seen = _span_of(p_blocks + p_ids, o_j, S)
        first = tl.maximum(0, tl.minimum(first, first_seen - offset))
        last = tl.minimum(T, tl.maximum(last, last_seen - offset))
    if p_segments is not None:
        first_seen, last_seen = _span_of(p_segments + p_ids, o_j, S)
        first, last = tl.maximum(first, first_seen - offset), tl.minimum(last, last_seen - offset)
        full_last = full_first
    start = first // BM * BM
    full_first = (full_first + BM - 1) // BM * BM
    full_last = tl.maximum(full_last, 0) // BM * BM
    if (full_last <= full_first) | (first_j < low) | (last_j > high):
        full_first = start
        full_last = start
    if (last_j <= low) | (first_j >= high):  # no key of the tile is valid
        last = start
    return start, full_first, full_last, last


def spans(ids: torch.Tensor, none: int | None = None) -> torch.Tensor:
    """Ids [B,S] of positions → spans [B,2,S] int32; ``none`` is what a position without an id has."""
    length = ids.shape[1]
    ordered, order = ids.sort(dim=1, stable=True)  # positions with the same id stand together, in their order
    at = torch.arange(length, device=ids.device).expand_as(ids)
    begins, ends = torch.ones_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool)
    begins[:, 1:] = ends[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    first = order.gather(1, at.where(begins, 0).cummax(1).values)
    last = order.gather(1, at.where(ends, length).flip(1).cummin(1).values.flip(1)) + 1
    if none is not None:
        missing = ordered == none
        first, last = first.masked_fill(missing, length), last.masked_fill(missing, 0)
    found = torch.stack((first, last), 1)
    return torch.empty_like(found).scatter_(2, order[:, None].expand_as(found), found).int()
