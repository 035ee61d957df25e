"""What the Triton kernels read off attention weights, against the oracle in float64; on a GPU or in the interpreter.

The numbers that are read are exact in float64, and sums are in float32 in every precision, so one tolerance serves all.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from symground import ops
from symground.ops.attention.mixing import Mixing
from symground.ops.attention.weights import triton
from symground.ops.attention.weights.record import Asked
from tests.ops.attention.test_triton import SHAPES, key_range
from tests.ops.attention.test_triton_options import today
from tests.ops.common.oracles import ORACLES
from tests.ops.common.triton_device import DEVICE, DTYPES, INTERPRETED, fresh_memory_is_nan  # noqa: F401

#: The lengths of some tests are multiplied by it, so that they cross the edges of a GPU's tiles.
LONGER = 1 if INTERPRETED else 4
PADDED = {"key_range": ((11, 53), (0, 39))}
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {"causal": False}, "negative": {"scale": -0.3}, "no scale": {"scale": 0.0}, "window": {"window": 9},
    "padding": PADDED, "padding and window": {**PADDED, "window": 9},
}  # fmt: skip


class Problem:
    """Queries and keys, and what is asked of them by op. Scores are exact in every precision, so equal ones are."""

    def __init__(self, B: int, H: int, Hk: int, T: int, S: int, D: int, form: dict[str, Any] | None = None) -> None:
        g = torch.Generator().manual_seed(B * 1000 + H * 100 + T + S + D)

        def halves(*shape: int) -> Tensor:
            return ((torch.randn(shape, generator=g) * 2).round().clamp(-2, 2) / 2).double()

        self.q, self.k, self.form = halves(B, H, T, D), halves(B, Hk, S, D), dict(form or {})
        self.form = {n: key_range(*x) if n == "key_range" else x for n, x in self.form.items()}
        z = {**self.exact, "v": self.k}
        self.lse = ORACLES["attention"](z).results[1]
        groups = {
            "query_groups": torch.randint(-1, 3, (B, T), generator=g), "num_query_groups": 3,
            "key_groups": torch.randint(-1, 4, (B, S), generator=g), "num_key_groups": 4,
        }  # fmt: skip
        of_query = {n: x for n, x in groups.items() if "query" in n}
        self.asked: list[tuple[str, dict[str, Any]]] = [
            ("attention_mass", groups), ("attention_received", of_query), ("attention_received", {}),
            ("attention_summary", {}), ("attention_pooled", {"block": 16, "reduce": "sum"}),
            ("attention_pooled", {"block": 5, "reduce": "max"}), ("attention_pooled", {"block": 40, "reduce": "max"}),
            ("attention_pooled", {"block": 2**40, "reduce": "sum"}), ("attention_topk", {"count": min(3, S)}),
        ]  # fmt: skip

    @property
    def exact(self) -> dict[str, Any]:
        """The arguments in float64 on the CPU."""
        form = {n: x.cpu() if isinstance(x, Tensor) else x for n, x in self.form.items()}
        form = {n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in form.items()}
        return {"q": self.q, "k": self.k, **form}

    def found(self, op: str, of: dict[str, Any], dtype: torch.dtype, impl: str = "triton") -> tuple[Tensor, ...]:
        of = {n: x.to(DEVICE) if isinstance(x, Tensor) else x for n, x in of.items()}
        q, k = (x.to(DEVICE, dtype) for x in (self.q, self.k))
        found = getattr(ops, op)(q, k, self.lse.float().to(DEVICE), **of, **self.form, impl=impl)
        return found if isinstance(found, tuple) else (found,)

    def check(self, dtype: torch.dtype) -> None:
        for op, of in self.asked:
            wanted = ORACLES[op]({**self.exact, "lse": self.lse.float().double(), **of}).results
            for i, (got, right) in enumerate(zip(self.found(op, of, dtype), wanted, strict=True)):
                assert right is not None
                assert_close(got, right, f"{op} {of}, {i}")


def assert_close(got: Tensor, right: Tensor, about: str) -> None:
    got, right = got.cpu().double(), right.double()
    assert got.shape == right.shape, about
    assert torch.equal(got.isneginf(), right.isneginf()), about
    at = ~right.isneginf()
    if at.any():
        error = (got[at] - right[at]).abs().max().item()
        assert error <= 1e-5 * (1 + right[at].abs().max().item()), (about, error)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    Problem(*shape).check(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [64, 128, 200])
def test_every_tile(size: int, dtype: torch.dtype) -> None:
    """The tables have an entry for each of these sizes."""
    Problem(1, 2, 1, 37 * LONGER, 40 * LONGER, size).check(dtype)


@pytest.mark.parametrize("size", [1, 30, 256, 576])
def test_heads_of_any_width(size: int) -> None:
    Problem(1, 1, 1, 33, 20, size).check(torch.float32)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_mask_and_scale(options: str) -> None:
    Problem(2, 2, 1, 40, 53, 16, OPTIONS[options]).check(torch.float32)


@pytest.mark.parametrize("which", ["softcap", "sink", "slopes", "packed", "scattered", "blocks", "all"])
@pytest.mark.parametrize("padded", [False, True])
def test_what_todays_models_ask_for(which: str, padded: bool) -> None:
    form = {**today(2, 2, 40, 53, which), **(OPTIONS["padding and window"] if padded else {})}
    if "slopes" in form:  # with which no two keys have the same score but for rounding
        form["slopes"] = torch.tensor([-0.0437, 0.2913], device=DEVICE)
    Problem(2, 2, 1, 40, 53, 16, form).check(DTYPES[padded])


@settings(max_examples=min(12, settings().max_examples))  # the interpreter is slow
@given(
    st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(1, 70), st.integers(1, 70),
    st.sampled_from((1, 5, 16, 40)), st.booleans(), st.none() | st.integers(1, 80), st.booleans(),
)  # fmt: skip
def test_drawn_shapes(
    batch: int, hk: int, group: int, t: int, s: int, size: int, causal: bool, window: int | None, padded: bool
) -> None:
    form: dict[str, Any] = {"causal": causal, "window": window if causal else None}
    if padded:
        form["key_range"] = tuple((s // 4, s - i * s // 2) for i in range(batch))
    Problem(batch, hk * group, hk, t, s, size, form).check(torch.float32)


def test_queries_that_see_no_key_and_keys_that_nobody_may_read() -> None:
    x = Problem(2, 2, 1, 40, 40, 16, {"key_range": ((30, 40), (7, 33)), "sink": torch.tensor([-1.0, 2.0])})
    clean = [x.found(op, of, torch.float32) for op, of in x.asked]
    unseen = torch.arange(40) < torch.tensor([[30], [7]])
    x.k[0, :, :30], x.k[1, :, :7], x.k[1, :, 33:] = torch.nan, torch.nan, torch.nan
    for level in (0.0, torch.inf, -torch.inf, torch.nan):
        x.lse[unseen[:, None].expand(2, 2, 40)] = level
        for (op, of), right in zip(x.asked, clean, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(x.found(op, of, torch.float32), right, strict=True)), op


@pytest.mark.parametrize("count", [2, 4, 5, 11])
def test_any_number_of_groups(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program sums four of them; and with one query tile at a time, the sums are those of all at once."""
    from symground.kernels.attention import weights as kernels

    x = Problem(2, 2, 1, 70, 70, 16)
    together = (torch.arange(70) * count // 70).expand(2, 70)
    apart = torch.randint(-1, count, (2, 70), generator=torch.Generator().manual_seed(0))
    for groups in (together, apart):
        of = {"query_groups": groups, "num_query_groups": count}
        wanted = ORACLES["attention_received"]({**x.exact, "lse": x.lse.float().double(), **of}).results[0]
        assert wanted is not None
        for most in (kernels.PARTS, 1):
            monkeypatch.setattr(kernels, "PARTS", most)
            assert_close(x.found("attention_received", of, torch.float32)[0], wanted, f"{most}")


def test_groups_without_a_query_receive_nothing() -> None:
    x = Problem(1, 2, 2, 70, 70, 16)
    of: dict[str, Any] = {"query_groups": torch.full((1, 70), -1), "num_query_groups": 2}
    assert bool((x.found("attention_received", of, torch.float32)[0] == 0).all())
    assert x.found("attention_received", {**of, "num_query_groups": 0}, torch.float32)[0].shape == (1, 2, 0, 70)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_scores_give_the_smallest_key(dtype: torch.dtype) -> None:
    q = torch.zeros(1, 2, 70, 16, dtype=dtype, device=DEVICE)
    _, lse = ops.attention(q, q, q, impl="triton")
    found = ops.attention_summary(q, q, lse, impl="triton")
    seen = torch.arange(1, 71, device=DEVICE)
    assert bool((found.key == 0).all())
    torch.testing.assert_close(found.entropy, seen.log().expand(1, 2, -1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.distance, ((seen - 1) / 2).expand(1, 2, -1), atol=1e-5, rtol=1e-5)


def test_what_is_asked_for_together_is_what_is_found_alone() -> None:
    x = Problem(2, 4, 2, 70, 70, 16)
    q, k, lse = (y.float().to(DEVICE) for y in (x.q, x.k, x.lse))
    of = {n: y.to(DEVICE) if isinstance(y, Tensor) else y for n, y in x.asked[0][1].items()}
    rows = torch.tensor([[3, 69], [0, 0]], device=DEVICE)
    groups = of["query_groups"], of["key_groups"], of["num_query_groups"], of["num_key_groups"]
    asked = Asked(rows, *groups, received=True, summary=True, block=16)
    found = triton.ops.attention_rows(q, k, lse, Mixing(), asked)
    alone = [
        ops.attention_rows(q, k, lse, rows, impl="triton"), ops.attention_mass(q, k, lse, *groups, impl="triton"),
        ops.attention_received(q, k, lse, groups[0], 3, impl="triton"),
        *ops.attention_summary(q, k, lse, impl="triton"), ops.attention_pooled(q, k, lse, 16, impl="triton"),
    ]  # fmt: skip
    for a, b in zip(found, alone, strict=True):
        assert torch.equal(a, b)


def test_any_strides_and_repeats_give_the_same_bits() -> None:
    packed = torch.randn(2, 70, 3, 2, 16, device=DEVICE)  # [B,T,3,H,D]
    q, k = (packed[:, :, i].transpose(1, 2) for i in range(2))
    _, lse = ops.attention(q, k, k, impl="triton")
    wide = torch.stack((lse, lse), -1)[..., 0]  # its rows are not contiguous
    for op, of in Problem(2, 2, 2, 70, 70, 16).asked:
        of = {n: x.to(DEVICE) if isinstance(x, Tensor) else x for n, x in of.items()}
        run = getattr(ops, op)
        found = [run(*of_q, **of, impl="triton") for of_q in ((q, k, wide), (q.contiguous(), k.contiguous(), lse))]
        for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in found), strict=True):
            assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # in masked elements
@pytest.mark.parametrize("largest", [1.0, 150.0, 1420.0])
def test_large_logits_cost_no_more_than_they_cost_eager(largest: float) -> None:
    """In float32, where LSE is rounded by more than an error in A may be; with the sink's share of each row."""
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 2, 40, 64, generator=g).double() for _ in range(2))
    sink = torch.tensor([largest / 2, -largest], dtype=torch.float64)
    q = (q * (largest * 8 / (q @ k.mT).abs().max())).float().double()
    hidden = torch.ones(40, 40, dtype=torch.bool).triu(1)
    away = torch.arange(40)[:, None] - torch.arange(40)

    def eager(dtype: torch.dtype) -> list[Tensor]:
        s = ((q.to(dtype) @ k.to(dtype).mT) / 8).masked_fill(hidden, -torch.inf)
        a = torch.cat([s, sink.to(dtype)[:, None, None].expand(2, 2, 40, 1)], -1).softmax(-1)[..., :40]
        return [a.sum(2), torch.special.entr(a).sum(-1), a.amax(-1), (a * away).sum(-1), a[:, :, :20, :20].sum((2, 3))]

    of = [x.float().to(DEVICE) for x in (q, k)]
    _, lse = ops.attention(*of, of[1], sink=sink.float().to(DEVICE), impl="triton")
    form: dict[str, Any] = {"sink": sink.float().to(DEVICE), "impl": "triton"}
    summary = ops.attention_summary(*of, lse, **form)
    ours = [
        ops.attention_received(*of, lse, **form)[:, :, 0], summary.entropy, summary.weight, summary.distance,
        ops.attention_pooled(*of, lse, 20, **form)[:, :, 0, 0],
    ]  # fmt: skip
    for i, (got, peer, right) in enumerate(zip(ours, eager(torch.float32), eager(torch.float64), strict=True)):
        error, eagers = ((x.cpu().double() - right).abs().mean().item() for x in (got, peer))
        assert error <= 2 * eagers + 1e-6 * (1 + right.abs().mean().item()), (i, error, eagers)


def test_a_log_sum_exp_over_more_keys_is_taken_as_it_is() -> None:
    x = Problem(2, 2, 2, 50, 64, 16, {"causal": False})
    q, k, lse = (y.float().to(DEVICE) for y in (x.q, x.k, x.lse))
    whole = ops.attention_received(q, k, lse, causal=False, impl="triton")
    parts = [
        ops.attention_received(q, k[:, :, at], lse, causal=False, impl="triton") for at in (slice(20), slice(20, 64))
    ]
    torch.testing.assert_close(torch.cat(parts, -1), whole, atol=1e-5, rtol=1e-5)
