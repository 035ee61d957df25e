"""What is read off attention weights: the public ops, their arguments, results and checks."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from symground.ops.attention.mixing import Mixing, check_attention, check_lse
from symground.ops.attention.weights import cpu, reference, torch, triton
from symground.ops.attention.weights.record import Asked, Read
from symground.ops.common import checks as check
from symground.ops.common.dispatch import choose
from symground.ops.common.flow import check_groups

#: The implementations by their name for ``impl``, in the order in which ``impl=None`` tries them.
IMPLEMENTATIONS = {"cpu": cpu.ops, "triton": triton.ops, "torch": torch.ops, "reference": reference}


def attention_rows(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    rows: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    key_range: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    slopes: Tensor | None = None,
    segments: Tensor | None = None,
    blocks: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """A_h[i,:] = exp(s_h[i,:] - LSE_h[i]), the attention weights of the queries i in ``rows``.

    Args:
        q, k, causal, scale, key_range, window, softcap, sink, slopes, segments, blocks: as in
            :func:`symground.ops.attention`.
        lse: [B,H,T] natural-log log-sum-exp of the forward pass, the sink included: of ``ops.attention``, flash-attn,
            or the auxiliary output of scaled_dot_product_attention's kernels or FlexAttention. Its value for a query
            that sees no key is not read.
        rows: [B,R] int, query positions in [0, T).
        impl: None picks by device.

    Returns:
        [B,H,R,S] in the precision of ``lse``; 0 where the query does not see the key. Differentiable in q, k, sink and
        slopes: LSE counts as a function of these.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value; the message names it.
        NotImplementedError: a second or forward-mode derivative was requested; only ``impl="reference"`` has them.

    Source: attention, Vaswani et al. 2017; the weights from LSE, Dao 2023 (FlashAttention-2), algorithm 2.

    Example:
        >>> q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
        >>> _, lse = ops.attention(q, k, k, causal=False)
        >>> last = ops.attention_rows(q, k, lse, torch.tensor([[4]]), causal=False)
        >>> torch.allclose(last, torch.softmax(q @ k.mT / 8**0.5, -1)[:, :, [4]], atol=1e-5)
        True
    """
    mixing = Mixing(causal, scale, key_range, window, None, softcap, sink, slopes, segments, blocks)
    mixing = _checked(q, k, lse, mixing)
    rows = check.rows(rows, q.shape[0], q.shape[2], "q", q)
    found = _read("attention_rows", q, k, lse, mixing, Asked(rows=rows), impl).rows
    assert found is not None
    return found


def attention_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    num_query_groups: int | None = None,
    num_key_groups: int | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    key_range: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    slopes: Tensor | None = None,
    segments: Tensor | None = None,
    blocks: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Σ_{i∈a, j∈b} A_h[i,j], the attention that the queries of a group give to the keys of another.

    Args:
        q, k, lse, causal, scale, key_range, window, softcap, sink, slopes, segments, blocks: as in
            :func:`symground.ops.attention_rows`.
        query_groups, key_groups: [B,T] and [B,S] int; -1 is in no group.
        num_query_groups, num_key_groups: the numbers of groups. None takes them from the ids, which waits for a GPU.
        impl: None picks by device.

    Returns:
        [B,H,Gq,Gk] in the precision of ``lse``. Differentiable as `attention_rows` is.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or group id; the message names it.
        NotImplementedError: a second or forward-mode derivative was requested; only ``impl="reference"`` has them.

    Source: the sum of attention weights over spans; Clark et al. 2019 ("What does BERT look at?"), section 3.

    Example:
        >>> q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
        >>> ids = torch.tensor([[0, 0, 1, 1, -1]])
        >>> _, lse = ops.attention(q, k, k, causal=False)
        >>> found = ops.attention_mass(q, k, lse, ids, ids, causal=False)
        >>> by_hand = torch.softmax(q @ k.mT / 8**0.5, -1)[:, :, :2, 2:4].sum((-1, -2))
        >>> torch.allclose(found[:, :, 0, 1], by_hand, atol=1e-5)
        True
    """
    mixing = Mixing(causal, scale, key_range, window, None, softcap, sink, slopes, segments, blocks)
    mixing = _checked(q, k, lse, mixing)
    sizes = (q.shape[0], q.shape[2], k.shape[2])
    groups = check_groups(query_groups, key_groups, num_query_groups, num_key_groups, sizes, "q", q)
    found = _read("attention_mass", q, k, lse, mixing, Asked(None, *groups), impl).mass
    assert found is not None
    return found


def attention_received(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    query_groups: Tensor | None = None,
    num_query_groups: int | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    key_range: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    slopes: Tensor | None = None,
    segments: Tensor | None = None,
    blocks: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Σ_{i∈a} A_h[i,j], the attention that each key receives from the queries of a group.

    Args:
        q, k, lse, causal, scale, key_range, window, softcap, sink, slopes, segments, blocks: as in
            :func:`symground.ops.attention_rows`.
        query_groups: [B,T] int, -1 is in no group; None is one group of all queries.
        num_query_groups: the number of groups. None takes it from the ids, which waits for a GPU.
        impl: None picks by device.

    Returns:
        [B,H,Gq,S] in the precision of ``lse``. Differentiable as `attention_rows` is.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or group id; the message names it.
        NotImplementedError: a second or forward-mode derivative was requested; only ``impl="reference"`` has them.

    Source: the accumulated score of Zhang et al. 2023 (H2O); over the last queries alone, Li et al. 2024 (SnapKV).

    Example:
        >>> q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
        >>> _, lse = ops.attention(q, k, k, causal=False)
        >>> found = ops.attention_received(q, k, lse, causal=False)
        >>> torch.allclose(found[:, :, 0], torch.softmax(q @ k.mT / 8**0.5, -1).sum(2), atol=1e-5)
        True
    """
    mixing = Mixing(causal, scale, key_range, window, None, softcap, sink, slopes, segments, blocks)
    mixing = _checked(q, k, lse, mixing)
    query, count = check.one_or_groups(query_groups, num_query_groups, q.shape[0], q.shape[2], "q", q)
    asked = Asked(query=query, num_query=count, received=True)
    found = _read("attention_received", q, k, lse, mixing, asked, impl).received
    assert found is not None
    return found


class AttentionSummary(NamedTuple):
    """What :func:`symground.ops.attention_summary` finds of each row of A, each [B,H,T]."""

    #: -Σ_j A log A in nats; a sink is no key and takes no part.
    entropy: Tensor
    #: The largest weight; 0 for a query that sees no key.
    weight: Tensor
    #: Its key, the smaller index of equal ones, in int64; -1 for a query that sees no key.
    key: Tensor
    #: Its score, with softcap and slopes; -inf for a query that sees no key.
    score: Tensor
    #: Σ_j A · (i + S - T - j), the mean distance to the keys.
    distance: Tensor


def attention_summary(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    key_range: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    slopes: Tensor | None = None,
    segments: Tensor | None = None,
    blocks: Tensor | None = None,
    impl: str | None = None,
) -> AttentionSummary:
    """Entropy, largest weight with its key and score, and mean distance of each row of A.

    Args:
        q, k, lse, causal, scale, key_range, window, softcap, sink, slopes, segments, blocks: as in
            :func:`symground.ops.attention_rows`.
        impl: None picks by device.

    Returns:
        an `AttentionSummary` of [B,H,T], in the precision of ``lse``. The entropy is differentiable as `attention_rows`
        is; the others have no gradient.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value; the message names it.
        NotImplementedError: a second or forward-mode derivative was requested; only ``impl="reference"`` has them.

    Source: entropy and distance, Clark et al. 2019 ("What does BERT look at?") and Vig & Belinkov 2019; the largest
    score, Kimi K2's QK-clip.

    Example:
        >>> q = torch.zeros(1, 2, 4, 8)  # so that the weights of each row are equal
        >>> _, lse = ops.attention(q, q, q, causal=False)
        >>> found = ops.attention_summary(q, q, lse, causal=False)
        >>> round(found.entropy[0, 0, 0].exp().item(), 4), found.weight[0, 0, 0].item(), found.key[0, 0, 0].item()
        (4.0, 0.25, 0)
    """
    mixing = Mixing(causal, scale, key_range, window, None, softcap, sink, slopes, segments, blocks)
    mixing = _checked(q, k, lse, mixing)
    found = _read("attention_summary", q, k, lse, mixing, Asked(summary=True), impl)
    return AttentionSummary._make(found[3:8])


def attention_pooled(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    block: int,
    reduce: str = "sum",
    *,
    causal: bool = True,
    scale: float | None = None,
    key_range: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    slopes: Tensor | None = None,
    segments: Tensor | None = None,
    blocks: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Sums or maxima of A over blocks of queries and keys: a picture of a long matrix.

    Args:
        q, k, lse, causal, scale, key_range, window, softcap, sink, slopes, segments, blocks: as in
            :func:`symground.ops.attention_rows`.
        block: the side of a block, at least 1. Blocks begin at query 0 and key 0; the last ones may be smaller.
        reduce: "sum" or "max".
        impl: None picks by device.

    Returns:
        [B,H,⌈T/block⌉,⌈S/block⌉] in the precision of ``lse``, without a gradient.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value; the message names it.

    Source: no formula but the sum.

    Example:
        >>> q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
        >>> _, lse = ops.attention(q, k, k, causal=False)
        >>> found = ops.attention_pooled(q, k, lse, 4, causal=False)
        >>> by_hand = torch.softmax(q @ k.mT / 8**0.5, -1)
        >>> found.shape, torch.allclose(found[:, :, 0, 1], by_hand[:, :, :4, 4].sum(-1), atol=1e-5)
        (torch.Size([1, 2, 2, 2]), True)
    """
    mixing = Mixing(causal, scale, key_range, window, None, softcap, sink, slopes, segments, blocks)
    mixing = _checked(q, k, lse, mixing)
    largest = check.choice("reduce", reduce, ("sum", "max")) == "max"
    asked = Asked(block=check.integer("block", block, 1), largest=largest)
    found = _read("attention_pooled", q, k, lse, mixing, asked, impl).pooled
    assert found is not None
    return found


def attention_topk(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    count: int,
    *,
    causal: bool = True,
    scale: float | None = None,
    key_range: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    slopes: Tensor | None = None,
    segments: Tensor | None = None,
    blocks: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The largest attention weights of each row and their keys.

    Args:
        q, k, lse, causal, scale, key_range, window, softcap, sink, slopes, segments, blocks: as in
            :func:`symground.ops.attention_rows`.
        count: how many of each row, at most S.
        impl: None picks by device.

    Returns:
        weights [B,H,T,count] in the precision of ``lse``, largest first, and their keys in int64; of equal scores, the
        smaller key comes first. Where a query sees fewer keys, the rest are 0 and -1. Neither has a gradient.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value; the message names it.

    Source: no formula but the order.

    Example:
        >>> q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
        >>> _, lse = ops.attention(q, k, k, causal=False)
        >>> weights, keys = ops.attention_topk(q, k, lse, 2, causal=False)
        >>> expected = torch.softmax(q @ k.mT / 8**0.5, -1).topk(2)
        >>> torch.allclose(weights, expected.values, atol=1e-5), torch.equal(keys, expected.indices)
        (True, True)
    """
    mixing = Mixing(causal, scale, key_range, window, None, softcap, sink, slopes, segments, blocks)
    mixing = _checked(q, k, lse, mixing)
    count = check.integer("count", count, 0)
    if count > k.shape[2]:
        raise ValueError(f"count: expected at most S = {k.shape[2]}, got {count}")
    weight, key = choose("attention_topk", IMPLEMENTATIONS, impl, q, k, mixing, None)(q, k, lse, mixing, count)
    return weight, key


def _checked(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing) -> Mixing:
    mixing = check_attention(q, k, None, mixing)
    check_lse(q, lse)
    return mixing


def attention_read(q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, asked: Asked) -> Read:
    """Whatever is asked for in one pass, with arguments that are checked already: what the public ops share."""
    return _read("attention_summary", q, k, lse, mixing, asked, None)


def _read(op: str, q: Tensor, k: Tensor, lse: Tensor, mixing: Mixing, asked: Asked, impl: str | None) -> Read:
    found: Read = choose(op, IMPLEMENTATIONS, impl, q, k, mixing, None)(q, k, lse, mixing, asked)
    return found
