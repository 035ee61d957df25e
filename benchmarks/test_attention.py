"""One layer's saliency beside its peers, in one process: B4 H12 T1024 D64 float32, causal.

python -m pytest benchmarks --benchmark-only --benchmark-json=benchmarks/results/attention-cpu.json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from symground import ops

B, H, T, D = 4, 12, 1024, 64


class Inputs:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.q, self.k, self.v = (torch.randn(B, H, T, D, requires_grad=True) for _ in range(3))
        self.grad = torch.randn(B, H, T, D)
        with torch.no_grad():
            _, self.lse = ops.attention(self.q, self.k, self.v)
        self.future = torch.ones(T, T, dtype=torch.bool).triu(1)


@pytest.fixture(scope="module")
def x() -> Inputs:
    return Inputs()


def eager(x: Inputs) -> Tensor:
    a = ((x.q @ x.k.mT) * D**-0.5).masked_fill(x.future, float("-inf")).softmax(-1)
    a.retain_grad()
    (a @ x.v * x.grad).sum().backward()
    assert a.grad is not None
    return (a * a.grad).sum(1).abs()


def sdpa(x: Inputs) -> None:
    (scaled_dot_product_attention(x.q, x.k, x.v, is_causal=True) * x.grad).sum().backward()


def symground(x: Inputs) -> Tensor:
    probe = torch.zeros(1).expand(B, T, T).requires_grad_()
    (ops.attention(x.q, x.k, x.v, saliency_probe=probe)[0] * x.grad).sum().backward()
    assert probe.grad is not None
    return probe.grad.abs()


def closed_form(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, future: Tensor) -> Tensor:
    a = ((q @ k.mT) * D**-0.5).masked_fill(future, float("-inf")).softmax(-1)
    return (a * (grad @ v.mT)).sum(1).abs()


compiled_closed_form = torch.compile(closed_form)


@pytest.mark.benchmark(group="forward + backward + saliency of one layer")
@pytest.mark.parametrize("run", [eager, sdpa, symground], ids=["eager retain_grad", "SDPA alone", "symground"])
def test_layer(benchmark: Any, x: Inputs, run: Callable[[Inputs], Any]) -> None:
    benchmark.pedantic(run, args=(x,), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="saliency alone")
@pytest.mark.parametrize("name", ["eager A ∘ (dO Vᵀ)", "the same, torch.compile", "symground"])
@torch.no_grad()
def test_saliency_alone(benchmark: Any, x: Inputs, name: str) -> None:
    materialised = (x.q, x.k, x.v, x.grad, x.future)
    run, arguments = {
        "eager A ∘ (dO Vᵀ)": (closed_form, materialised),
        "the same, torch.compile": (compiled_closed_form, materialised),
        "symground": (ops.attention_saliency, (x.q, x.k, x.v, x.grad, x.lse)),
    }[name]
    result = benchmark.pedantic(run, args=arguments, rounds=5, warmup_rounds=2)
    torch.testing.assert_close(result, closed_form(*materialised), atol=1e-4, rtol=1e-4)
