"""Attention and its saliency against autograd through a materialised attention matrix, in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from symground import ops


class Case(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    grad_out: Tensor
    kw: dict[str, Any]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch, hk, repeat = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    t, size = draw(st.integers(1, 9)), draw(st.sampled_from((1, 3, 8)))
    s = draw(st.integers(1, 9))
    causal = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    kw: dict[str, Any] = {"causal": causal, "scale": draw(st.sampled_from((None, 0.7)))}
    if draw(st.booleans()):
        bounds = [sorted(draw(st.tuples(st.integers(0, s), st.integers(0, s)))) for _ in range(batch)]
        kw["key_range"] = torch.tensor(bounds)
    if causal and draw(st.booleans()):
        kw["window"] = draw(st.integers(1, s))
    if draw(st.booleans()):
        shape = draw(st.sampled_from(((hk * repeat,), (batch, hk * repeat))))
        kw["gate"] = torch.tensor([0.0, 1.0, 0.4], dtype=torch.float64)[torch.randint(3, shape, generator=generator)]
    if draw(st.booleans()):
        kw["softcap"] = draw(st.sampled_from((0.5, 4)))
    for name in ("sink", "slopes"):
        if draw(st.booleans()):
            kw[name] = normal(hk * repeat)
    for name, low in (("segments", 0), ("blocks", -1)):
        if t <= s and draw(st.booleans()):
            kw[name] = torch.randint(low, 2, (batch, s), generator=generator)
    of_value = draw(st.sampled_from((size, 2)))
    return Case(
        normal(batch, hk * repeat, t, size), normal(batch, hk, s, size), normal(batch, hk, s, of_value),
        normal(batch, hk * repeat, t, of_value), kw,
    )  # fmt: skip


IMPLEMENTATIONS = ("reference", "cpu", "torch")
every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


def by_hand(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """(output, lse, S [B,H,T,S]) by loops over positions, exactly as defined."""
    q, k, v, grad_out, kw = case
    batch, heads, t, size = q.shape
    s = k.shape[2]
    scale = kw["scale"] or size**-0.5
    softcap, sink, slopes, segments, blocks = map(kw.get, ("softcap", "sink", "slopes", "segments", "blocks"))
    out = torch.zeros_like(grad_out)
    lse = torch.full(q.shape[:3], float("-inf"), dtype=torch.float64)
    saliency = torch.zeros(batch, heads, t, s, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            kh = h // (heads // k.shape[1])
            gate = 1.0 if kw.get("gate") is None else kw["gate"].expand(batch, heads)[b, h]
            for i in range(t):
                last = i + s - t if kw["causal"] else s - 1
                first = last - kw["window"] + 1 if kw.get("window") else 0
                low, high = (0, s) if kw.get("key_range") is None else kw["key_range"][b].tolist()
                at = i + s - t
                keys = []
                for j in range(low, high):
                    sees = first <= j <= last
                    if blocks is not None:
                        sees = sees or bool(blocks[b, j] == blocks[b, at] != -1)
                    if segments is not None:
                        sees = sees and bool(segments[b, j] == segments[b, at])
                    if sees:
                        keys.append(j)
                scores = []
                for j in keys:
                    score = q[b, h, i] @ k[b, kh, j] * scale
                    score = score if softcap is None else softcap * (score / softcap).tanh()
                    scores.append(score if slopes is None else score + slopes[h] * (j - at))
                scores = (
                    torch.stack([*scores, *([] if sink is None else [sink[h]])]) if keys or sink is not None else ()
                )
                if not len(scores):
                    continue
                lse[b, h, i] = scores.logsumexp(0)
                for j, a in zip(keys, scores.softmax(0), strict=False):  # of the sink there is no value
                    out[b, h, i] += gate * a * v[b, kh, j]
                    saliency[b, h, i, j] = gate * a * (grad_out[b, h, i] @ v[b, kh, j])
    return out, lse, saliency


@every_impl
@given(cases())
def test_forward_is_the_definition(impl: str, case: Case) -> None:
    out, lse = ops.attention(case.q, case.k, case.v, **case.kw, impl=impl)
    expected_out, expected_lse, _ = by_hand(case)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(lse, expected_lse)
    assert not lse.requires_grad


@every_impl
@given(cases())
def test_saliency_is_the_definition_and_the_gradient_of_the_probe(impl: str, case: Case) -> None:
    q, k, v, grad_out, kw = case
    _, lse, saliency = by_hand(case)
    torch.testing.assert_close(
        ops.attention_saliency(q, k, v, grad_out, lse, signed=True, **kw, impl=impl), saliency.sum(1)
    )
    torch.testing.assert_close(ops.attention_saliency(q, k, v, grad_out, lse, **kw, impl=impl), saliency.sum(1).abs())
    batch, _, t, _ = q.shape
    probe = torch.zeros(1, dtype=torch.float64).expand(batch, t, k.shape[2]).requires_grad_()
    out, _ = ops.attention(q, k, v, **kw, impl=impl, saliency_probe=probe)
    (out * grad_out).sum().backward()
    torch.testing.assert_close(probe.grad, saliency.sum(1))


@every_impl
@given(cases(), st.integers(0, 10**6))
def test_rows_are_rows_of_the_matrix(impl: str, case: Case, seed: int) -> None:
    q, k, v, grad_out, kw = case
    _, lse, saliency = by_hand(case)
    rows = torch.randint(q.shape[2], (q.shape[0], 2), generator=torch.Generator().manual_seed(seed))
    got = ops.attention_saliency_rows(q, k, v, grad_out, lse, rows, **kw, impl=impl)
    for b in range(q.shape[0]):
        torch.testing.assert_close(got[b], saliency[b][:, rows[b]])


@every_impl
@given(cases(), st.integers(0, 10**6))
def test_flow_sums_the_groups_and_is_the_gradient_of_the_probe(impl: str, case: Case, seed: int) -> None:
    q, k, v, grad_out, kw = case
    batch, heads, t, _ = q.shape
    s = k.shape[2]
    generator = torch.Generator().manual_seed(seed)
    query_groups = torch.randint(-1, 2, (batch, t), generator=generator)
    key_groups = torch.randint(-1, 3, (batch, s), generator=generator)
    _, lse, saliency = by_hand(case)
    flow = torch.zeros(batch, heads, 2, 3, dtype=torch.float64)
    row_total = torch.zeros(batch, heads, 2, dtype=torch.float64)
    for b in range(batch):
        for i in range(t):
            if query_groups[b, i] < 0:
                continue
            row_total[b, :, query_groups[b, i]] += saliency[b, :, i].abs().sum(-1)
            for j in range(s):
                if key_groups[b, j] >= 0:
                    flow[b, :, query_groups[b, i], key_groups[b, j]] += saliency[b, :, i, j].abs()
    got = ops.attention_flow(q, k, v, grad_out, lse, query_groups, key_groups, 2, 3, **kw, impl=impl)
    torch.testing.assert_close(got[0], flow)
    torch.testing.assert_close(got[1], row_total)
    torch.testing.assert_close(got[2], saliency.abs().sum((-1, -2)))
    probe = torch.zeros(1, dtype=torch.float64).expand(batch, heads, 2, 3).requires_grad_()
    out, _ = ops.attention(q, k, v, **kw, impl=impl, flow_probe=probe, query_groups=query_groups, key_groups=key_groups)
    (out * grad_out).sum().backward()
    torch.testing.assert_close(probe.grad, flow)


@every_impl
@given(cases())
def test_row_identity(impl: str, case: Case) -> None:
    """Σ_j S_h[i,j] = ⟨dO_h[i], O_h[i]⟩, summed over heads."""
    q, k, v, grad_out, kw = case
    out, lse = ops.attention(q, k, v, **kw, impl=impl)
    signed = ops.attention_saliency(q, k, v, grad_out, lse, signed=True, **kw, impl=impl)
    torch.testing.assert_close(signed.sum(-1), (grad_out * out).sum((1, 3)))


@every_impl
@given(cases())
def test_gradients_are_autograds(impl: str, case: Case) -> None:
    """Gradients of q, k, v equal autograd's through the matrix of `by_hand`; empty rows give 0, never NaN."""
    leaves = [x.clone().requires_grad_() for x in (case.q, case.k, case.v)]
    out, _ = ops.attention(*leaves, **case.kw, impl=impl)
    got = torch.autograd.grad((out * case.grad_out).sum(), leaves, materialize_grads=True)
    by_hand_leaves = [x.clone().requires_grad_() for x in (case.q, case.k, case.v)]
    expected, _, _ = by_hand(Case(*by_hand_leaves, case.grad_out, case.kw))
    wanted = (
        torch.autograd.grad((expected * case.grad_out).sum(), by_hand_leaves, materialize_grads=True)
        if expected.requires_grad
        else [torch.zeros_like(x) for x in by_hand_leaves]
    )
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@every_impl
def test_gradcheck(impl: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, 4, 3, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2))
    gate = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    key_range = torch.tensor([[0, 3], [2, 4]])  # the second example has rows with no valid key
    assert torch.autograd.gradcheck(
        lambda q, k, v, gate: ops.attention(q, k, v, key_range=key_range, gate=gate, impl=impl)[0], (q, k, v, gate)
    )


@every_impl
def test_probes_add_up_over_micro_batches_and_store_one_number(impl: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    probe = torch.zeros(1).expand(1, 5, 5).requires_grad_()
    assert probe.untyped_storage().nbytes() == 4
    ops.attention(q, k, v, saliency_probe=probe, impl=impl)[0].sum().backward()
    assert probe.grad is not None
    once = probe.grad.clone()
    ops.attention(q, k, v, saliency_probe=probe, impl=impl)[0].sum().backward()
    torch.testing.assert_close(probe.grad, 2 * once)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 16, 8).to(dtype) for _ in range(3))
    out, lse = ops.attention(q, k, v, impl="reference")
    exact, exact_lse = ops.attention(q.double(), k.double(), v.double(), impl="reference")
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse, exact_lse.float())
    torch.testing.assert_close(out, exact.to(dtype))


@every_impl
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_within_twice_eagers_error(dtype: torch.dtype, impl: str) -> None:
    """By FlashAttention's criterion: the error against float64, compared with eager's at the same precision."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 2, 40, 16).to(dtype) for _ in range(4))

    def run(impl: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        probe = torch.zeros(1).expand(2, 40, 40).requires_grad_()
        if impl == "eager":
            s = (leaves[0] @ leaves[1].mT) * 0.25
            s = s.masked_fill(torch.ones(40, 40, dtype=torch.bool).triu(1), float("-inf"))
            out, lse = (s.softmax(-1) * (1 + probe.to(dtype)[:, None])) @ leaves[2], s.detach().logsumexp(-1)
        else:
            out, lse = ops.attention(*leaves, saliency_probe=probe, impl=impl)
        return [out, lse, *torch.autograd.grad((out * grad.to(dtype)).sum(), [*leaves, probe])]

    exact = run("reference", torch.float64)
    for ours, eager, wanted in zip(run(impl, dtype), run("eager", dtype), exact, strict=True):
        assert (ours.double() - wanted).abs().max() <= 2 * (eager.double() - wanted).abs().max()


@every_impl
def test_non_contiguous_inputs(impl: str) -> None:
    torch.manual_seed(0)
    packed = torch.randn(2, 6, 3, 2, 4, dtype=torch.float64)  # [B,T,3,H,D]
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    torch.testing.assert_close(
        ops.attention(q, k, v, impl=impl)[0], ops.attention(q.contiguous(), k.contiguous(), v.contiguous())[0]
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_narrow_integers_are_welcome(dtype: torch.dtype) -> None:
    q = torch.randn(1, 1, 200, 4)
    key_range, groups = torch.tensor([[0, 100]]).to(dtype), torch.zeros(1, 200).to(dtype)
    _, lse = ops.attention(q, q, q, key_range=key_range)
    flow, _, _ = ops.attention_flow(q, q, q, q, lse, groups, groups, 200, 200, key_range=key_range)
    assert flow.shape == (1, 1, 200, 200)


@every_impl
def test_what_stands_outside_the_key_range_is_not_read(impl: str) -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 2, 5, 4) for _ in range(4))
    key_range = torch.tensor([[0, 3], [2, 5]])
    poisoned = [x.clone() for x in (k, v)]
    for x in poisoned:
        x[0, :, 3:], x[1, :, :2] = float("nan"), float("inf")
    results = []
    for keys, values in ((k, v), poisoned):
        leaves = [x.clone().requires_grad_() for x in (q, keys, values)]
        out, lse = ops.attention(*leaves, key_range=key_range, impl=impl)
        gradients = torch.autograd.grad((out * grad).sum(), leaves)
        saliency = ops.attention_saliency(q, keys, values, grad, lse, key_range=key_range, impl=impl)
        results.append((out, lse, saliency, *gradients))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)


@given(st.integers(1, 300), st.integers(1, 300), st.booleans(), st.integers(1, 400), st.integers(0, 10**6))
def test_tiles_agree_with_the_reference_across_their_bounds(
    t: int, s: int, causal: bool, window: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    q, grad = (torch.randn(2, 4, t, 3, generator=g, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(2, 2, s, 3, generator=g, dtype=torch.float64) for _ in range(2))
    key_range = torch.randint(0, s + 1, (2, 2), generator=g).sort(-1).values
    kw: dict[str, Any] = {"causal": causal, "key_range": key_range, "window": window if causal else None}
    kw["gate"] = torch.rand(2, 4, generator=g, dtype=torch.float64)
    query_groups, key_groups = (torch.randint(-1, 3, (2, n), generator=g) for n in (t, s))
    results = []
    for impl in IMPLEMENTATIONS:
        out, lse = ops.attention(q, k, v, **kw, impl=impl)
        saliency = ops.attention_saliency(q, k, v, grad, lse, **kw, impl=impl)
        flow = ops.attention_flow(q, k, v, grad, lse, query_groups, key_groups, 3, 3, **kw, impl=impl)
        results.append((out, lse, saliency, *flow))
    for other in results[1:]:
        for expected, got in zip(results[0], other, strict=True):
            torch.testing.assert_close(got, expected)


BAD = {
    "q": {"q": torch.zeros(2, 2, 4)},
    "k": {"k": torch.zeros(2, 3, 5, 8)},
    "v": {"v": torch.zeros(2, 1, 6, 8)},
    "q: expected a head size D from 1 to 576, got 577": {
        "q": torch.zeros(2, 2, 4, 577),
        "k": torch.zeros(2, 1, 5, 577),
    },
    "v: expected a head size Dv from 1 to 576, got 0": {"v": torch.zeros(2, 1, 5, 0)},
    "key_range": {"key_range": torch.tensor([[0, 6], [0, 5]])},
    "key_range: expected an integer": {"key_range": torch.zeros(2, 2)},
    "window": {"window": 0},
    "window: needs causal=True, got causal=False": {"window": 2, "causal": False},
    "gate": {"gate": torch.ones(3)},
    "gate: expected finite numbers": {"gate": torch.tensor([1.0, float("nan")])},
    "softcap: expected a number from 8e-31 to 1e.30, or None; got 0": {"softcap": 0},
    "softcap: expected a number from 8e-31 to 1e.30, or None; got 3e.37": {"softcap": 3e37},
    "softcap: expected a finite number": {"softcap": float("inf")},
    r"sink: expected shape \[H\] = \[2\], got \[3\]": {"sink": torch.zeros(3)},
    "sink: expected numbers that are finite in torch.float32; got -inf": {"sink": torch.tensor([0.0, float("-inf")])},
    "sink: expected numbers that are finite in torch.float32; got 1e.39": {
        "sink": torch.full((2,), 1e39, dtype=torch.float64),
    },
    "slopes: expected numbers that are finite in torch.float32, times T . S too": {"slopes": torch.full((2,), -1e38)},
    "slopes: expected a floating-point tensor": {"slopes": torch.zeros(2, dtype=torch.long)},
    r"segments: expected shape \[B,S\] = \[2, 5\], got \[2, 4\]": {"segments": torch.zeros(2, 4, dtype=torch.long)},
    "segments: expected an integer tensor": {"segments": torch.zeros(2, 5)},
    "segments: query i has the id of key i [+] S - T, so T <= S is expected; got T = 6, S = 5": {
        "q": torch.zeros(2, 2, 6, 8),
        "segments": torch.zeros(2, 5, dtype=torch.long),
    },
    "blocks: query i has the id": {"q": torch.zeros(2, 2, 6, 8), "blocks": torch.zeros(2, 5, dtype=torch.long)},
    "blocks: expected ids of at least -1, which is no block; got -2": {"blocks": torch.full((2, 5), -2)},
    "impl": {"impl": "nonsense"},
    "saliency_probe": {"saliency_probe": torch.zeros(2, 4, 4)},
    "query_groups: expected group ids": {"flow_probe": torch.zeros(2, 2, 1, 1)},
    "key_groups: expected group ids in": {
        "flow_probe": torch.zeros(2, 2, 1, 1),
        "query_groups": torch.zeros(2, 4, dtype=torch.long),
        "key_groups": torch.ones(2, 5, dtype=torch.long),
    },
    "k: expected dtype": {"k": torch.zeros(2, 1, 5, 8, dtype=torch.float64)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message: str) -> None:
    good = {"q": torch.zeros(2, 2, 4, 8), "k": torch.zeros(2, 1, 5, 8), "v": torch.zeros(2, 1, 5, 8)}
    with pytest.raises(ValueError, match=message):
        ops.attention(**{**good, **BAD[message]})


def test_saliency_refuses_a_gradient_of_another_shape() -> None:
    q = k = v = torch.zeros(1, 2, 4, 8)
    with pytest.raises(ValueError, match=r"grad_out: expected shape \[B,H,T,Dv\] = \[1, 2, 4, 8\], got \[1, 2, 3, 8\]"):
        ops.attention_saliency(q, k, v, torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match=r"rows: expected positions in \[0, T\)"):
        ops.attention_saliency_rows(q, k, v, q, torch.zeros(1, 2, 4), torch.tensor([[4]]))
    with pytest.raises(ValueError, match=r"query_groups: expected group ids in \[-1, G\), G = 1; got 1"):
        ops.attention_flow(q, k, v, q, torch.zeros(1, 2, 4), torch.ones(1, 4).long(), torch.ones(1, 4).long(), 1, 2)
