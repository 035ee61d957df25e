"""The public attention ops: their arguments, results and checks, and the choice of an implementation."""

from __future__ import annotations

from torch import Tensor

from symground.ops.attention import cpu, flash, reference, torch, triton
from symground.ops.attention.mixing import Mixing, check_attention, check_saliency
from symground.ops.common import checks as check
from symground.ops.common.dispatch import choose
from symground.ops.common.flow import check_groups
from symground.ops.common.probes import GradientProbes, check_probes

#: The implementations by their name for ``impl``, in the order in which ``impl=None`` tries them. ``torch`` takes any
#: tensor, so what comes after it runs only if it is named.
IMPLEMENTATIONS = {
    "cpu": cpu.ops, "flash": flash.ops, "triton": triton.ops, "torch": torch.ops, "reference": reference,
}  # fmt: skip


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    scale: float | None = None,
    key_range: Tensor | None = None,
    window: int | None = None,
    gate: Tensor | None = None,
    saliency_probe: Tensor | None = None,
    flow_probe: Tensor | None = None,
    query_groups: Tensor | None = None,
    key_groups: Tensor | None = None,
    *,
    softcap: float | None = None,
    sink: Tensor | None = None,
    slopes: Tensor | None = None,
    segments: Tensor | None = None,
    blocks: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, softmax(q kᵀ · scale) v, with optional probes for its saliency.

    Args:
        q: queries [B,H,T,D], D from 1 to 576. All are read: NaN in a query, even of padding, reaches the gradients of
            keys and values.
        k, v: keys [B,Hk,S,D] and values [B,Hk,S,Dv], Dv from 1 to 576. Hk divides H, and query head h uses key head
            h // (H/Hk).
        causal: query i sees keys j <= i + S - T (aligned bottom-right).
        scale: multiplies q kᵀ; default D ** -0.5.
        key_range: [B,2] int, first and one-past-last valid key of each example (left or right padding). Other keys and
            values are not read, so they may be NaN.
        window: each query sees only the last ``window`` of its causal keys; needs ``causal=True``.
        gate: [H] or [B,H]; multiplies each head's output. Gate 0 gives exactly 0.
        saliency_probe: [B,T,S]; storage of one element is enough (``torch.zeros(1).expand(B, T, S)``). Its values are
            taken to be 0. Its *gradient* is the signed saliency Σ_h S_h, with
            S_h[i,j] = gate_h · A_h[i,j] · ⟨dO_h[i], V_h[j]⟩.
        flow_probe: [B,H,Gq,Gk], likewise. Its gradient is the flow F_h[a,b] = Σ_{i∈a, j∈b} |S_h[i,j]|.
        query_groups, key_groups: [B,T] and [B,S] int group ids for ``flow_probe``; -1 is in no group.
        softcap: c > 0; the scores s = q kᵀ · scale become c · tanh(s / c).
        sink: [H]; one more logit in each row's softmax, of no value. So a row of A sums to at most 1.
        slopes: [H]; slope_h · (j - (i + S - T)) is added to the scores, after ``softcap`` (ALiBi).
        segments: [B,S] int; query i, which has the id of key i + S - T, sees only keys of its own id (texts packed into
            one row, chunks). Needs T <= S.
        blocks: [B,S] int, -1 for none; positions of the same block also see each other both ways, beside what
            ``causal`` and ``window`` let them see (prefixes, the patches of a picture). ``segments`` and ``key_range``
            hold for them too. Needs T <= S.
        impl: None picks by device and by what is asked for (:func:`symground.ops.explain` says what, and why). A named
            implementation is never replaced by another.

    Returns:
        out [B,H,T,Dv] in the dtype of q, and lse [B,H,T], the natural logarithm of the softmax's denominator, in
        float32 (float64 for float64 inputs) and not differentiable. A query with no valid key has output 0, gradient 0,
        saliency 0 and lse -inf, or the sink.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value; the message names it.
        RuntimeError: this machine lacks something that a named ``impl`` needs, or it is switched off.
        NotImplementedError: a second or forward-mode derivative was requested; only ``impl="reference"`` has them.

    Source: attention, Vaswani et al. 2017; the saliency, Wang et al. 2023 ("Label words are anchors"), equation 1;
    ``slopes``, Press et al. 2022 (ALiBi); ``sink``, Xiao et al. 2024 and gpt-oss; ``softcap``, Gemma 2.

    Example:
        >>> q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
        >>> out, lse = ops.attention(q, k, v, causal=False)
        >>> torch.allclose(out, torch.softmax(q @ k.mT / 8**0.5, -1) @ v, atol=1e-5)
        True
    """
    given = Mixing(causal, scale, key_range, window, gate, softcap, sink, slopes, segments, blocks)
    mixing = check_attention(q, k, v, given)
    of_probes = GradientProbes(saliency_probe, flow_probe, query_groups, key_groups)
    probes = check_probes(of_probes, (*q.shape[:3], k.shape[2]), "q", q)
    out, lse = choose("attention", IMPLEMENTATIONS, impl, q, k, mixing, v)(q, k, v, mixing, probes)
    return out, lse


def attention_saliency(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    signed: bool = False,
    *,
    causal: bool = True,
    scale: float | None = None,
    key_range: Tensor | None = None,
    window: int | None = None,
    gate: Tensor | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    slopes: Tensor | None = None,
    segments: Tensor | None = None,
    blocks: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """I = |Σ_h A_h ∘ ∂L/∂A_h|, the saliency of a layer, from (q, k, v, dO, LSE).

    Args:
        q, k, v, causal, scale, key_range, window, gate, softcap, sink, slopes, segments, blocks: as in
            :func:`symground.ops.attention`.
        grad_out: [B,H,T,Dv] gradient of L with respect to the op's output, L summed over examples.
        lse: [B,H,T] natural-log log-sum-exp of the forward pass.
        signed: return Σ_h S_h without its absolute value.
        impl: None picks by device.

    Returns:
        [B,T,S] in the precision of ``lse``; 0 outside the valid keys. Units: nats when L is a surprisal in nats.
        With ``signed=True`` each row sums to Σ_h ⟨dO_h[i], O_h[i]⟩.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value; the message names it.
        NotImplementedError: a derivative of the result was requested; only ``impl="reference"`` has it.

    Source: Wang et al. 2023, equation 1, with ∂L/∂A_h = dO_h V_hᵀ.

    Example:
        >>> q, k, v, grad_out = (torch.randn(1, 2, 5, 8) for _ in range(4))
        >>> _, lse = ops.attention(q, k, v, causal=False)
        >>> found = ops.attention_saliency(q, k, v, grad_out, lse, causal=False)
        >>> by_hand = (torch.softmax(q @ k.mT / 8**0.5, -1) * (grad_out @ v.mT)).sum(1).abs()
        >>> torch.allclose(found, by_hand, atol=1e-5)
        True
    """
    given = Mixing(causal, scale, key_range, window, gate, softcap, sink, slopes, segments, blocks)
    mixing = check_attention(q, k, v, given)
    check_saliency(q, v, grad_out, lse)
    signed = check.flag("signed", signed)
    total: Tensor = choose("attention_saliency", IMPLEMENTATIONS, impl, q, None, mixing, v)(
        q, k, v, grad_out, lse, mixing, signed
    )
    return total


def attention_saliency_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    rows: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    key_range: Tensor | None = None,
    window: int | None = None,
    gate: Tensor | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    slopes: Tensor | None = None,
    segments: Tensor | None = None,
    blocks: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """S_h[i,j] = gate_h · A_h[i,j] · ⟨dO_h[i], V_h[j]⟩ for the queries i in ``rows``, signed, per head.

    Args:
        q, k, v, causal, scale, key_range, window, gate, softcap, sink, slopes, segments, blocks: as in
            :func:`symground.ops.attention`.
        grad_out: [B,H,T,Dv] gradient of L with respect to the op's output.
        lse: [B,H,T] natural-log log-sum-exp of the forward pass.
        rows: [B,R] int, query positions in [0, T).
        impl: None picks by device.

    Returns:
        [B,H,R,S] in the precision of ``lse``.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value; the message names it.
        NotImplementedError: a derivative of the result was requested; only ``impl="reference"`` has it.

    Source: Wang et al. 2023, equation 1, before the sum over heads.

    Example:
        >>> q, k, v, grad_out = (torch.randn(1, 2, 5, 8) for _ in range(4))
        >>> _, lse = ops.attention(q, k, v, causal=False)
        >>> found = ops.attention_saliency_rows(q, k, v, grad_out, lse, torch.tensor([[4]]), causal=False)
        >>> by_hand = torch.softmax(q @ k.mT / 8**0.5, -1) * (grad_out @ v.mT)
        >>> torch.allclose(found, by_hand[:, :, [4]], atol=1e-5)
        True
    """
    given = Mixing(causal, scale, key_range, window, gate, softcap, sink, slopes, segments, blocks)
    mixing = check_attention(q, k, v, given)
    check_saliency(q, v, grad_out, lse)
    rows = check.rows(rows, q.shape[0], q.shape[2], "q", q)
    out: Tensor = choose("attention_saliency_rows", IMPLEMENTATIONS, impl, q, None, mixing, v)(
        q, k, v, grad_out, lse, mixing, rows
    )
    return out


def attention_flow(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
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
    gate: Tensor | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    slopes: Tensor | None = None,
    segments: Tensor | None = None,
    blocks: Tensor | None = None,
    with_matrix_total: bool = True,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """F_h[a,b] = Σ_{i∈a, j∈b} |S_h[i,j]| and its row and matrix totals.

    Args:
        q, k, v, causal, scale, key_range, window, gate, softcap, sink, slopes, segments, blocks: as in
            :func:`symground.ops.attention`.
        grad_out: [B,H,T,Dv] gradient of L with respect to the op's output.
        lse: [B,H,T] natural-log log-sum-exp of the forward pass.
        query_groups, key_groups: [B,T] and [B,S] int; -1 is in no group, yet counts in the totals.
        num_query_groups, num_key_groups: the numbers of groups. None takes them from the ids, which waits for a GPU.
        with_matrix_total: False omits matrix_total (None) and skips the queries that are in no group. For the usual
            single prediction row this costs O(B·H·T·D) instead of O(B·H·T²·D).
        impl: None picks by device.

    Returns:
        F [B,H,Gq,Gk]; row_total [B,H,Gq], summed over the rows of a and all keys; matrix_total [B,H], summed over all
        rows and keys. All are in the precision of ``lse``.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or group id; the message names it.
        NotImplementedError: a derivative of the result was requested; only ``impl="reference"`` has it.

    Source: the information flow S_wp, S_pq of Wang et al. 2023, section 2.2, for arbitrary groups, as sums.

    Example:
        >>> q, k, v, grad_out = (torch.randn(1, 2, 5, 8) for _ in range(4))
        >>> ids = torch.tensor([[0, 0, 1, 1, -1]])
        >>> _, lse = ops.attention(q, k, v, causal=False)
        >>> flow, row_total, matrix_total = ops.attention_flow(q, k, v, grad_out, lse, ids, ids, causal=False)
        >>> by_hand = (torch.softmax(q @ k.mT / 8**0.5, -1) * (grad_out @ v.mT)).abs()
        >>> torch.allclose(flow[:, :, 0, 1], by_hand[:, :, :2, 2:4].sum((-1, -2)), atol=1e-5)
        True
    """
    given = Mixing(causal, scale, key_range, window, gate, softcap, sink, slopes, segments, blocks)
    mixing = check_attention(q, k, v, given)
    check_saliency(q, v, grad_out, lse)
    sizes = (q.shape[0], q.shape[2], k.shape[2])
    groups = check_groups(query_groups, key_groups, num_query_groups, num_key_groups, sizes, "q", q)
    with_matrix_total = check.flag("with_matrix_total", with_matrix_total)
    run = choose("attention_flow", IMPLEMENTATIONS, impl, q, None, mixing, v)
    flow, row_total, matrix_total = run(q, k, v, grad_out, lse, mixing, groups, with_matrix_total)
    return flow, row_total, matrix_total if with_matrix_total else None
