"""Float32 at logits of any size: the error of every result is at most twice eager attention's, against float64."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from symground import ops
from symground.ops.common import extension
from symground.ops.common.needs import imports

built = pytest.mark.skipif(extension.library is None, reason="the C++ extension is not built: symground build")
interpreted = pytest.mark.skipif(
    torch.cuda.is_available() or not imports("triton"),
    reason="needs Triton in its interpreter: no GPU, Triton installed",
)
INNER = ["plain", pytest.param("extension", marks=built), "torch"]
#: Version → ``impl``; the others are versions of "cpu".
IMPL = {"torch": "torch", "triton": "triton"}
LARGEST = (1.0, 20.0, 150.0, 457.0, 1420.0, 1500.0)


class Problem:
    """Random queries, keys, values and a gradient whose largest logit has a given size, in float64."""

    def __init__(
        self, seed: int, largest: float, lengths: tuple[int, int], heads: tuple[int, int], size: int, batch: int = 2
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        (t, s), (h, hk) = lengths, heads
        q, k, v, grad = (
            torch.randn(batch, n, m, size, generator=g).double() for n, m in ((h, t), (hk, s), (hk, s), (h, t))
        )
        logits = (q @ k.repeat_interleave(h // hk, 1).mT) * size**-0.5
        q = (q * (largest / logits.abs().max())).float().double()
        self.tensors = (q, k, v, grad)
        self.groups = tuple(torch.randint(-1, n, (batch, m), generator=g) for n, m in ((2, t), (3, s)))

    def eager(self, dtype: torch.dtype, gate: Tensor | None, seen: Tensor, sign: float) -> dict[str, Tensor]:
        """The results of materialised attention in this precision."""
        q, k, v, grad = (x.to(dtype) for x in self.tensors)
        q, k, v = (x.requires_grad_() for x in (q, k, v))
        share = q.shape[1] // k.shape[1]
        s = (q @ k.repeat_interleave(share, 1).mT) * (sign * q.shape[-1] ** -0.5)
        a = s.masked_fill(~seen, float("-inf")).softmax(-1)
        out = a @ v.repeat_interleave(share, 1)
        if gate is not None:
            out = out * gate[:, None, None].to(dtype)
        dq, dk, dv, da = torch.autograd.grad(out, [q, k, v, a], grad)
        rows = (a * da).detach()
        flows, of_row = self.sums(rows.abs())
        total = rows.sum(1)
        return {
            "out": out.detach(), "dq": dq, "dk": dk, "dv": dv, "probe's saliency": total, "probe's flow": flows,
            "saliency": total, "rows": rows, "flow": flows, "row total": of_row,
            "matrix total": rows.abs().sum((-1, -2)),
        }  # fmt: skip

    def sums(self, size: Tensor) -> tuple[Tensor, Tensor]:
        of_query, of_key = (
            (x[:, None] == torch.arange(n)[:, None]).to(size.dtype)[:, None]
            for x, n in zip(self.groups, (2, 3), strict=True)
        )
        rows = of_query @ size
        return rows @ of_key.mT, rows.sum(-1)

    def ours(self, impl: str, gate: Tensor | None, causal: bool, sign: float) -> dict[str, Tensor]:
        q, k, v, grad = (x.float() for x in self.tensors)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        batch, heads, queries, size = q.shape
        of_saliency = torch.zeros(1).expand(batch, queries, k.shape[2]).requires_grad_()
        of_flow = torch.zeros(1).expand(batch, heads, 2, 3).requires_grad_()
        kw: dict[str, Any] = {"gate": gate, "causal": causal, "scale": sign * size**-0.5, "impl": impl}
        out, lse = ops.attention(
            *leaves, saliency_probe=of_saliency, flow_probe=of_flow, query_groups=self.groups[0],
            key_groups=self.groups[1], **kw,
        )  # fmt: skip
        dq, dk, dv, total, flows = torch.autograd.grad(out, [*leaves, of_saliency, of_flow], grad)
        after = (q, k, v, grad, lse)
        flow, of_row, of_matrix = ops.attention_flow(*after, *self.groups, 2, 3, **kw)
        assert of_matrix is not None
        every = torch.arange(queries).expand(batch, -1)
        return {
            "out": out.detach(), "dq": dq, "dk": dk, "dv": dv, "probe's saliency": total, "probe's flow": flows,
            "saliency": ops.attention_saliency(*after, True, **kw), "flow": flow, "row total": of_row,
            "rows": ops.attention_saliency_rows(*after, every, **kw), "matrix total": of_matrix,
        }  # fmt: skip


def assert_no_worse_than_eager(
    problems: Iterable[Problem], impl: str, gated: bool, causal: bool, sign: float = 1.0
) -> None:
    """Errors are compared over all problems together: in a single one eager's may be small by chance."""
    ours, theirs, rounding = (defaultdict[str, float](float) for _ in range(3))
    for x in problems:
        queries, keys = x.tensors[0].shape[2], x.tensors[1].shape[2]
        seen = torch.ones(queries, keys, dtype=torch.bool)
        seen = seen.tril(keys - queries) if causal else seen
        gate = torch.linspace(0.4, 1.0, x.tensors[0].shape[1]) if gated else None
        exact, eager = (x.eager(dtype, gate, seen, sign) for dtype in (torch.float64, torch.float32))
        terms = 2 * exact["rows"].abs().sum(-1).mean().item() * x.tensors[1].abs().max().item()
        for name, got in x.ours(impl, gate, causal, sign).items():
            wanted = exact[name].double()
            ours[name] += (got.double() - wanted).abs().mean().item()
            theirs[name] += (eager[name].double() - wanted).abs().mean().item()
            # If one key has all the weight, eager's differences are exactly 0; the rounding of their terms is allowed.
            unit = max(wanted.abs().mean().item(), terms if name in ("dq", "dk") else 0.0)
            rounding[name] += torch.finfo(torch.float32).eps * unit
    for name, error in ours.items():
        assert error <= 2 * theirs[name] + rounding[name], f"{name}: {error:.2g}, of eager {theirs[name]:.2g}"


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("largest", LARGEST)
@settings(max_examples=6)
@given(
    st.integers(0, 10**6), st.sampled_from(((40, 40), (64, 130), (1, 70))), st.sampled_from(((2, 2), (4, 2))),
    st.sampled_from((8, 64)), st.booleans(), st.booleans(), st.sampled_from((1.0, -1.0)),
)  # fmt: skip
def test_large_logits_cost_no_more_than_they_cost_eager(
    inner: str, largest: float, seed: int, lengths: tuple[int, int], heads: tuple[int, int], size: int, gated: bool,
    causal: bool, sign: float,
) -> None:  # fmt: skip
    with patch.object(extension, "library", extension.library if inner == "extension" else None):
        batch = max(2, 128 // (heads[0] * lengths[0]))  # the errors of a few rows differ by chance
        problems = [Problem(seed + i, largest, lengths, heads, size, batch) for i in range(8)]
        assert_no_worse_than_eager(problems, IMPL.get(inner, "cpu"), gated, causal, sign)


@interpreted
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # in masked elements
@pytest.mark.parametrize(
    ("largest", "lengths", "heads", "size", "gated", "causal", "sign"),
    [
        (1.0, (40, 40), (2, 2), 8, True, True, 1.0),
        (20.0, (20, 50), (4, 2), 8, False, False, -1.0),
        (150.0, (40, 40), (2, 2), 64, False, True, 1.0),
        (457.0, (20, 50), (2, 2), 64, True, True, -1.0),
        (1420.0, (40, 40), (4, 2), 8, True, True, 1.0),
        (1420.0, (1, 70), (4, 2), 64, False, False, 1.0),
        (1500.0, (40, 40), (2, 2), 64, False, True, 1.0),
    ],
)
def test_large_logits_cost_the_triton_kernels_no_more_than_they_cost_eager(
    largest: float, lengths: tuple[int, int], heads: tuple[int, int], size: int, gated: bool, causal: bool, sign: float
) -> None:
    assert_no_worse_than_eager([Problem(5, largest, lengths, heads, size)], "triton", gated, causal, sign)


@pytest.mark.parametrize("inner", [*INNER, pytest.param("triton", marks=interpreted)])
def test_a_log_sum_exp_over_more_keys_is_taken_as_it_is(inner: str) -> None:
    """Keys in two parts, each with the log-sum-exp of all keys, give the saliency of the whole."""
    impl = IMPL.get(inner, "cpu")
    q, k, v, grad = (x.float() for x in Problem(3, 30.0, (50, 64), (2, 2), 8).tensors)
    _, lse = ops.attention(q, k, v, causal=False)
    whole = ops.attention_saliency(q, k, v, grad, lse, True, causal=False, impl="reference")
    with patch.object(extension, "library", extension.library if inner == "extension" else None):
        parts = [
            ops.attention_saliency(q, k[:, :, at], v[:, :, at], grad, lse, True, causal=False, impl=impl)
            for at in (slice(0, 20), slice(20, 64))
        ]
    rounding = 32 * torch.finfo(torch.float32).eps * (1 + lse.abs().max().item())  # as in normalize_
    torch.testing.assert_close(torch.cat(parts, -1), whole, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("scale", [0.0, -0.0, -1e-30, -0.3, -7.0, 1e-30, 7.0])
@settings(max_examples=6)
@given(
    st.integers(0, 10**6), st.sampled_from(((20, 20), (7, 20), (29, 20), (300, 310))), st.booleans(), st.booleans(),
    st.sampled_from((None, 3, 400)), st.sampled_from((torch.float32, torch.float64, torch.bfloat16)),
)  # fmt: skip
def test_any_scale(
    inner: str, scale: float, seed: int, lengths: tuple[int, int], padded: bool, gated: bool, window: int | None,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """Scales of 0 and below too: masked pairs have no weight at any scale."""
    q, k, v, grad = (x.to(dtype) for x in Problem(seed, 4.0, lengths, (2, 1), 8).tensors)
    kw: dict[str, Any] = {"scale": scale, "window": window, "gate": torch.tensor([0.5, 1.0]) if gated else None}
    kw["key_range"] = torch.tensor([[0, 20], [2, 17]]) if padded else None
    found = []
    with patch.object(extension, "library", extension.library if inner == "extension" else None):
        for impl, as_ in ((IMPL.get(inner, "cpu"), dtype), ("reference", torch.float64)):
            leaves = [x.to(as_).requires_grad_() for x in (q, k, v)]
            out, lse = ops.attention(*leaves, **kw, impl=impl)
            found.append([out.detach(), lse, *torch.autograd.grad(out, leaves, grad.to(as_))])
    tolerance = 0.04 if dtype == torch.bfloat16 else 1e-4
    for got, wanted in zip(*found, strict=True):
        assert torch.equal(got.isneginf(), wanted.isneginf())
        error = (got.double() - wanted)[~wanted.isneginf()].abs().max().item()
        assert error <= tolerance * (1 + wanted[~wanted.isneginf()].abs().max().item())
