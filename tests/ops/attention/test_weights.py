"""What is read off attention weights: identities, gradients, one pass for all, bad input. The oracle is in common/."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from symground import ops
from symground.ops.attention.mixing import Mixing
from symground.ops.attention.weights import cpu, reference
from symground.ops.attention.weights import torch as torch_impl
from symground.ops.attention.weights.record import Asked
from symground.ops.attention.weights.tiles import backend
from tests.ops.common.drawn import implementation
from tests.ops.common.test_registered import Watch

every = pytest.mark.parametrize("impl", ["reference", "cpu", "plain", "torch"])


def drawn(length: int = 9, keys: int | None = None, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 4, length, 8, dtype=dtype), torch.randn(2, 2, keys or length, 8, dtype=dtype)


@every
def test_the_sums_are_those_of_each_other(impl: str) -> None:
    q, k = drawn(70, 90)
    form: dict[str, Any] = {
        "window": 40, "key_range": torch.tensor([[3, 90], [0, 71]]), "sink": torch.randn(4, dtype=torch.float64),
    }  # fmt: skip
    _, lse = ops.attention(q, k, k, **form)
    groups = torch.randint(3, (2, 70)), torch.randint(2, (2, 90))
    with implementation(impl) as name:
        each = torch.arange(70).expand(2, -1)
        rows = ops.attention_rows(q, k, lse, each, **form, impl=name)
        received = ops.attention_received(q, k, lse, **form, impl=name)
        of_groups = ops.attention_received(q, k, lse, groups[0], **form, impl=name)
        mass = ops.attention_mass(q, k, lse, *groups, **form, impl=name)
        summary = ops.attention_summary(q, k, lse, **form, impl=name)
        pooled = ops.attention_pooled(q, k, lse, 7, **form, impl=name)
        weights, keys = ops.attention_topk(q, k, lse, 90, **form, impl=name)
    torch.testing.assert_close(rows.sum(2, keepdim=True), received)
    torch.testing.assert_close(of_groups.sum(2, keepdim=True), received)
    torch.testing.assert_close(mass.sum((2, 3)), received.sum((2, 3)))
    torch.testing.assert_close(pooled.sum((2, 3)), received.sum((2, 3)))
    # Each row sums to 1, less what the sink takes; a row that sees no key to 0.
    seen = ~torch.isneginf(summary.score)
    taken = (form["sink"][:, None] - lse).exp()
    torch.testing.assert_close(rows.sum(-1), torch.where(seen, 1 - taken, 0.0))
    torch.testing.assert_close(weights, rows.sort(-1, descending=True).values)
    torch.testing.assert_close(summary.weight, rows.amax(-1))
    assert torch.equal(summary.key, torch.where(seen, rows.argmax(-1), -1))
    assert torch.equal(keys[..., 0], summary.key)
    assert torch.equal(keys == -1, weights == 0)


@every
@pytest.mark.parametrize("length", [1, 5, 130])
def test_equal_scores_give_a_uniform_row_and_the_smallest_key(impl: str, length: int) -> None:
    q = torch.zeros(1, 2, length, 4)
    _, lse = ops.attention(q, q, q)
    with implementation(impl) as name:
        found = ops.attention_summary(q, q, lse, impl=name)
        weights, keys = ops.attention_topk(q, q, lse, length, impl=name)
    seen = torch.arange(1, length + 1)
    torch.testing.assert_close(found.entropy, seen.log().expand(1, 2, -1))
    torch.testing.assert_close(found.weight, (1 / seen).expand(1, 2, -1))
    torch.testing.assert_close(found.distance, ((seen - 1) / 2).expand(1, 2, -1))
    assert bool((found.key == 0).all())
    wanted = torch.arange(length).expand(length, -1).masked_fill(torch.ones(length, length).triu(1).bool(), -1)
    assert torch.equal(keys, wanted.expand(1, 2, -1, -1))
    torch.testing.assert_close(weights, ((wanted >= 0) / seen[:, None]).expand(1, 2, -1, -1))


@every
def test_a_query_that_sees_no_key(impl: str) -> None:
    """Whatever its LSE is: PyTorch's kernels give 0, flash-attn's +inf, ours -inf."""
    q, k = drawn(5)
    segments = torch.tensor([[0, 0, 1, 1, 1]] * 2)
    for level in (0.0, math.inf, -math.inf):
        _, lse = ops.attention(q, k, k, segments=segments, key_range=torch.tensor([[2, 5]] * 2))
        lse[..., :2] = level
        form: dict[str, Any] = {"segments": segments, "key_range": torch.tensor([[2, 5]] * 2)}
        with implementation(impl) as name:
            found = ops.attention_summary(q, k, lse, **form, impl=name)
            rows = ops.attention_rows(q, k, lse, torch.tensor([[0, 1]] * 2), **form, impl=name)
            received = ops.attention_received(q, k, lse, **form, impl=name)
            weights, keys = ops.attention_topk(q, k, lse, 2, **form, impl=name)
        nothing = [x[..., :2] for x in (found.entropy, found.weight, found.distance)]
        assert all(bool((x == 0).all()) for x in (*nothing, rows, received[..., :2], weights[..., :2, :]))
        assert bool((found.key[..., :2] == -1).all())
        assert bool(found.score[..., :2].isneginf().all())
        assert bool((keys[..., :2, :] == -1).all())
        assert bool(found.entropy[..., 2:].isfinite().all())


@every
def test_keys_outside_the_range_are_not_read(impl: str) -> None:
    q, k = drawn()
    _, lse = ops.attention(q, k, k, key_range=torch.tensor([[2, 9], [0, 6]]))
    k[0, :, :2] = k[1, :, 6:] = math.nan
    q, k = q.requires_grad_(), k.requires_grad_()
    form: dict[str, Any] = {"key_range": torch.tensor([[2, 9], [0, 6]])}
    with implementation(impl) as name:
        rows = ops.attention_rows(q, k, lse, torch.tensor([[1, 8]] * 2), **form, impl=name)
        received = ops.attention_received(q, k, lse, **form, impl=name)
        summary = ops.attention_summary(q, k, lse, **form, impl=name)
        found = torch.autograd.grad(rows.square().sum() + received.square().sum() + summary.entropy.sum(), (q, k))
    for x in (rows, received, *summary[:2], summary.distance, *found):
        assert not bool(x.isnan().any())


DIFFERENTIABLE: dict[str, Callable[..., Tensor]] = {
    "rows": lambda q, k, lse, **kw: ops.attention_rows(q, k, lse, torch.tensor([[0, 4, 4], [6, 2, 5]]), **kw),
    "mass": lambda q, k, lse, **kw: ops.attention_mass(
        q, k, lse, torch.arange(7).remainder(3).expand(2, -1) - 1, torch.arange(9).remainder(3).expand(2, -1) - 1, **kw
    ),
    "received": lambda q, k, lse, **kw: ops.attention_received(q, k, lse, **kw),
    "entropy": lambda q, k, lse, **kw: ops.attention_summary(q, k, lse, **kw).entropy,
}


@every
@pytest.mark.parametrize("what", DIFFERENTIABLE)
@pytest.mark.parametrize("more", [False, True])
def test_gradcheck(impl: str, what: str, more: bool) -> None:
    """Also of sink and slopes; with LSE computed anew for the shifted inputs, as the definition says."""
    q, k = (x.requires_grad_() for x in drawn(7, 9))
    form: dict[str, Any] = {"key_range": torch.tensor([[1, 9], [0, 8]])}
    leaves = [q, k]
    if more:
        form |= {"softcap": 2.0, "window": 5}
        leaves += [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def run(q: Tensor, k: Tensor, sink: Tensor | None = None, slopes: Tensor | None = None) -> Tensor:
        given = {**form, "sink": sink, "slopes": slopes}
        with torch.no_grad():
            _, lse = ops.attention(q, k, k, **given)
        return DIFFERENTIABLE[what](q, k, lse, **given, impl=name)

    with implementation(impl) as name:
        torch.autograd.gradcheck(run, leaves, fast_mode=True)


@every
def test_what_is_asked_for_together_is_what_is_found_alone(impl: str) -> None:
    q, k = drawn(150, 150)
    _, lse = ops.attention(q, k, k)
    mixing, groups = Mixing().resolved(q), (torch.randint(-1, 3, (2, 150)), torch.randint(-1, 2, (2, 150)), 3, 2)
    rows = torch.tensor([[3, 149], [0, 0]])
    asked = Asked(rows, *groups, received=True, summary=True, block=16)
    run = {"reference": reference.attention_read, "torch": torch_impl.ops.attention_rows}.get(
        impl, cpu.ops.attention_rows
    )
    with implementation(impl) as name:
        found = run(q, k, lse, mixing, asked)
        alone = [
            ops.attention_rows(q, k, lse, rows, impl=name), ops.attention_mass(q, k, lse, *groups, impl=name),
            ops.attention_received(q, k, lse, groups[0], 3, impl=name),
            *ops.attention_summary(q, k, lse, impl=name), ops.attention_pooled(q, k, lse, 16, impl=name),
        ]  # fmt: skip
    assert asked.results == (True,) * 9
    for a, b in zip(found, alone, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("of", ["weight", "score", "distance", "pooled", "topk"])
@every
def test_what_has_no_gradient_requires_none(impl: str, of: str) -> None:
    q, k = (x.requires_grad_() for x in drawn())
    lse = torch.randn(2, 4, 9)
    with implementation(impl) as name:
        if of == "pooled":
            found = ops.attention_pooled(q, k, lse, 4, impl=name)
        elif of == "topk":
            found = ops.attention_topk(q, k, lse, 2, impl=name)[0]
        else:
            found = getattr(ops.attention_summary(q, k, lse, impl=name), of)
    assert not found.requires_grad


def test_the_lse_of_others_serves() -> None:
    """Of PyTorch's attention kernel for CPUs, and of FlexAttention."""
    q, k = drawn(9, dtype=torch.float32)
    k = k.repeat_interleave(2, 1)
    _, ours = ops.attention(q, k, k)
    _, of_sdpa = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, k, 0.0, True)
    _, aux = flex_attention(
        q, k, k, score_mod=lambda s, b, h, i, j: torch.where(j <= i, s, -math.inf), return_aux=AuxRequest(lse=True)
    )
    expected = ops.attention_received(q, k, ours)
    for lse in (of_sdpa, aux.lse):
        torch.testing.assert_close(ops.attention_received(q, k, lse), expected)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("padded", [False, True])
def test_no_attention_matrix_is_made(reads: bool, padded: bool) -> None:
    """Forward and backward: rows of tiles, never [B,H,T,S]. The extension's memory is not torch's."""
    batch, heads, length, size = 1, 8, 512, 16
    q, k = (torch.randn(batch, heads, length, size) for _ in range(2))
    bounds = torch.tensor([[5, 500]]) if padded else None
    mixing = Mixing(scale=0.25, key_range=bounds)
    _, lse = ops.attention(q, k, k, key_range=bounds, scale=0.25)
    groups = torch.randint(3, (batch, length)), torch.randint(3, (batch, length))
    kernels, asked = backend(reads), Asked(None, *groups, 3, 3, True, True, 64)
    with Watch(q, k, lse) as watch:
        found = kernels.read(q, k, lse, mixing, asked)
    assert all(x is not None for x in found[1:])
    assert watch.largest <= 64 * heads * length
    assert watch.peak <= 6 * 64 * heads * length < heads * length**2


BAD: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    r"rows: expected positions in \[0, T\), T = 4; got -1": (ops.attention_rows, {"rows": torch.tensor([[-1], [0]])}),
    r"rows: expected shape \[B,R\] = \[2, any\], got \[1, 3\]": (
        ops.attention_rows, {"rows": torch.zeros(1, 3).long()},
    ),
    r"query_groups: expected group ids in \[-1, G\), G = 1; got 3": (
        ops.attention_received, {"query_groups": torch.full((2, 4), 3), "num_query_groups": 1},
    ),
    "num_query_groups: expected None or 1 without query_groups, got 2": (
        ops.attention_received, {"num_query_groups": 2},
    ),
    r"key_groups: expected shape \[B,S\] = \[2, 5\], got \[2, 4\]": (
        ops.attention_mass, {"query_groups": torch.zeros(2, 4).long(), "key_groups": torch.zeros(2, 4).long()},
    ),
    "count: expected at most S = 5, got 6": (ops.attention_topk, {"count": 6}),
    "count: expected an integer of at least 0, got -1": (ops.attention_topk, {"count": -1}),
    "block: expected an integer of at least 1, got 0": (ops.attention_pooled, {"block": 0}),
    "reduce: expected ": (ops.attention_pooled, {"block": 2, "reduce": "mean"}),
    r"lse: expected shape \[B,H,T\] = \[2, 4, 4\], got \[2, 4, 5\]": (
        ops.attention_summary, {"lse": torch.zeros(2, 4, 5)},
    ),
    "window: needs causal=True, got causal=False": (ops.attention_summary, {"window": 2, "causal": False}),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message: str) -> None:
    op, wrong = BAD[message]
    good: dict[str, Any] = {"q": torch.zeros(2, 4, 4, 8), "k": torch.zeros(2, 2, 5, 8), "lse": torch.zeros(2, 4, 4)}
    with pytest.raises(ValueError, match=message):
        op(**{**good, **wrong})


@every
@pytest.mark.parametrize("fill", [0.0, math.inf, math.nan])
def test_the_lse_of_a_query_that_sees_no_key_is_not_read(impl: str, fill: float) -> None:
    """aten's kernels put 0 there, others inf or NaN; no result and no gradient depends on it."""
    q, k = drawn(6)
    sink, key_range = torch.randn(4, dtype=torch.float64), torch.tensor([[2, 5], [3, 3]])
    empty = torch.ones(2, 1, 6, dtype=torch.bool)
    empty[0, :, 2:] = False  # the second text has no key, and two queries of the first see none
    rows, groups = torch.tensor([[0, 5], [1, 4]]), torch.tensor([[0, 0, 1, 1, 2, -1]]).expand(2, -1)

    def everything(lse: Tensor) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (q, k, sink)]
        given: dict[str, Any] = {"key_range": key_range, "sink": leaves[2], "impl": name}
        read = (*leaves[:2], lse)
        found = [
            ops.attention_rows(*read, rows, **given), ops.attention_mass(*read, groups, groups, **given),
            ops.attention_received(*read, **given), *ops.attention_summary(*read, **given),
        ]  # fmt: skip
        total = torch.stack([x.square().sum() for x in found[:4]]).sum()
        more = [ops.attention_pooled(*read, 4, **given), *ops.attention_topk(*read, 3, **given)]
        return [*found, *more, *torch.autograd.grad(total, leaves)]

    with implementation(impl) as name:
        _, lse = ops.attention(q, k, k, key_range=key_range, sink=sink)
        expected = everything(lse)
        found = everything(torch.where(empty, torch.full_like(lse, fill), lse))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
