"""The Triton kernels on shapes drawn by Hypothesis, in float32 against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed: kernel tests")

from symground import ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@settings(max_examples=min(25, settings().max_examples))  # the interpreter is slow
@given(
    st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(1, 70), st.integers(1, 70),
    st.sampled_from((1, 5, 16, 40)), st.booleans(), st.none() | st.integers(1, 80), st.booleans(),
    st.integers(0, 10**6),
)  # fmt: skip
def test_every_gradient_is_the_references(
    batch: int, hk: int, group: int, t: int, s: int, size: int, causal: bool, window: int | None, padded: bool,
    seed: int,
) -> None:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    q, grad = (torch.randn(batch, hk * group, t, size, generator=g).to(DEVICE) for _ in range(2))
    k, v = (torch.randn(batch, hk, s, size, generator=g).to(DEVICE) for _ in range(2))
    kw: dict[str, Any] = {"causal": causal, "window": window if causal else None}
    if padded:
        kw["key_range"] = torch.randint(0, s + 1, (batch, 2), generator=g).sort(-1).values.to(DEVICE)
    groups = [torch.randint(-1, 3, (batch, n), generator=g).to(DEVICE) for n in (t, s)]
    results = []
    for impl, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        saliency = torch.zeros(1, device=DEVICE).expand(batch, t, s).requires_grad_()
        flow = torch.zeros(1, device=DEVICE).expand(batch, hk * group, 3, 3).requires_grad_()
        out, lse = ops.attention(
            *leaves, **kw, saliency_probe=saliency, flow_probe=flow, query_groups=groups[0], key_groups=groups[1],
            impl=impl,
        )  # fmt: skip
        results.append([out, lse, *torch.autograd.grad(out, [*leaves, saliency, flow], grad.to(dtype))])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), wanted.double(), atol=1e-4, rtol=1e-4)
