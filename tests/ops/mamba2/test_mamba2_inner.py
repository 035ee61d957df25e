"""The short convolution, and a Mamba-2 layer between its projections, against float64 and against the separate ops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from symground import ops

F64 = torch.float64


def by_loops(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None) -> Tensor:
    batch, length, channels = x.shape
    taps = weight.shape[1]
    whole = torch.cat([torch.zeros(batch, taps - 1, channels, dtype=x.dtype) if before is None else before, x], 1)
    out = torch.zeros_like(x)
    for t in range(length):
        for k in range(taps):
            out[:, t] += weight[:, k] * whole[:, t + k]
    return out if bias is None else out + bias


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    batch, length, channels, taps = (draw(st.integers(1, n)) for n in (3, 9, 5, 4))
    length = draw(st.sampled_from([length, 64, 67, 130]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=F64)

    bias = normal(channels) if draw(st.booleans()) else None
    before = normal(batch, taps - 1, channels) if draw(st.booleans()) else None
    return normal(batch, length, channels), normal(channels, taps), bias, before


@given(convolutions(), st.sampled_from(["silu", None]), st.sampled_from(["cpu", "reference"]))
def test_convolution_is_its_definition_with_its_gradients(z: Any, activation: str | None, impl: str) -> None:
    x, weight, bias, before = z
    leaves = [w.clone().requires_grad_() for w in (x, weight, *(() if bias is None else (bias,)))]
    expected = by_loops(*leaves[:2], leaves[2] if bias is not None else None, before)
    expected = torch.nn.functional.silu(expected) if activation else expected
    again = [w.clone().requires_grad_() for w in leaves]
    found = ops.causal_conv1d(*again[:2], again[2] if bias is not None else None, before, activation, impl=impl)
    torch.testing.assert_close(found, expected)
    grad = torch.randn(x.shape, dtype=F64)
    for a, b in zip(torch.autograd.grad(found, again, grad), torch.autograd.grad(expected, leaves, grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_of_views_and_in_lower_precision(dtype: torch.dtype) -> None:
    wide = torch.randn(2, 7, 9, dtype=dtype)
    x, weight, bias = wide[..., 2:7], torch.randn(5, 4), torch.randn(5)
    exact = ops.causal_conv1d(x.double(), weight.double(), bias.double(), impl="reference")
    found = ops.causal_conv1d(x, weight, bias)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(ops.causal_conv1d(x.mT.contiguous().mT, weight, bias), found, rtol=0, atol=0)


def test_convolution_gives_its_state_a_gradient() -> None:
    x, weight = torch.randn(1, 3, 2, dtype=F64), torch.randn(2, 4, dtype=F64)
    before = torch.randn(1, 3, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: ops.causal_conv1d(x, weight, None, b), before)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"weight": torch.zeros(4, 3)}, "weight"),
        ({"weight": torch.zeros(5, 0)}, "weight"),
        ({"bias": torch.zeros(4)}, "bias"),
        ({"initial_state": torch.zeros(2, 4, 5)}, "initial_state"),
        ({"activation": "gelu"}, "activation"),
        ({"x": torch.zeros(2, 5)}, "x"),
    ],
)
def test_bad_arguments_of_the_convolution_are_named(changes: dict[str, Any], name: str) -> None:
    good: dict[str, Any] = {"x": torch.zeros(2, 7, 5), "weight": torch.zeros(5, 4)}
    with pytest.raises(ValueError, match=f"^{name}: "):
        ops.causal_conv1d(**{**good, **changes})


def layer(
    length: int = 7, heads: int = 4, groups: int = 2, size: int = 3, state: int = 5, dtype: torch.dtype = F64
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=F64).to(dtype)

    width = heads * size
    channels = width + 2 * groups * state
    return {
        "projected": normal(2, length, width + channels + heads), "conv_weight": normal(channels, 4),
        "conv_bias": normal(channels), "dt_bias": normal(heads), "A_log": normal(heads), "D": normal(heads),
        "norm_weight": normal(width), "groups": groups,
    }  # fmt: skip


def gradients(z: dict[str, Any], impl: str) -> list[Tensor]:
    leaves = {k: v.clone().requires_grad_() if isinstance(v, Tensor) else v for k, v in z.items()}
    out = ops.mamba2_inner(**leaves, impl=impl)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(out.dtype)
    (out * weights).sum().backward()
    return [out.detach(), *(v.grad for v in leaves.values() if isinstance(v, Tensor))]


@pytest.mark.parametrize(
    "changes",
    [
        {"length": 1}, {"length": 64}, {"length": 150}, {"groups": 1, "heads": 3, "size": 8}, {"groups": 4, "state": 1},
        {"conv_bias": None}, {"dt_limit": (0.3, 0.9)},
    ],
)  # fmt: skip
@pytest.mark.parametrize("threads", [1, 3])
def test_one_op_is_its_parts_with_all_gradients(changes: dict[str, Any], threads: int) -> None:
    sizes = {k: v for k, v in changes.items() if k in ("length", "groups", "heads", "size", "state")}
    z = {**layer(**sizes), **{k: v for k, v in changes.items() if k not in sizes}}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, expected = gradients(z, "cpu"), gradients(z, "reference")
    finally:
        torch.set_num_threads(before)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_reference_against_gradcheck() -> None:
    z = layer(length=3, heads=2, groups=1, size=2, state=2)
    leaves = [v.requires_grad_() for v in z.values() if isinstance(v, Tensor)]
    for impl in ("reference", "cpu"):
        assert torch.autograd.gradcheck(lambda *w: ops.mamba2_inner(*w, 1, impl=impl), leaves)  # noqa: B023


def test_half_precision_and_one_set_of_bits() -> None:
    z = layer(dtype=torch.float32)
    exact = ops.mamba2_inner(**{k: v.double() if isinstance(v, Tensor) else v for k, v in z.items()})
    torch.testing.assert_close(ops.mamba2_inner(**z).double(), exact, rtol=1e-4, atol=1e-5)
    half = ops.mamba2_inner(**{**z, "projected": z["projected"].bfloat16()})
    assert half.dtype == torch.bfloat16  # the dtype of projected, for any dtype of the weights
    torch.testing.assert_close(half.double(), exact, rtol=0.1, atol=0.1)
    for a, b in zip(gradients(z, "cpu"), gradients(z, "cpu"), strict=True):
        assert torch.equal(a, b)


def test_opcheck_and_whole_graphs() -> None:
    z = layer(dtype=torch.float32)
    tensors = [v for v in z.values() if isinstance(v, Tensor)]
    op = torch.ops.symground
    settings = (2, 1e-5, 0.0, float("inf"))
    out, y = op.mamba2_inner_cpu(*tensors, *settings)
    torch.library.opcheck(op.mamba2_inner_cpu, (*(w.clone().requires_grad_() for w in tensors), *settings))
    torch.library.opcheck(op.mamba2_inner_backward_cpu, (torch.randn_like(out), y, *tensors, *settings))
    x, weight, bias = torch.randn(1, 5, 3), torch.randn(3, 4), torch.randn(3)
    torch.library.opcheck(op.causal_conv1d_cpu, (x.clone().requires_grad_(), weight, bias, None, True))
    torch.library.opcheck(op.causal_conv1d_backward_cpu, (x, x.clone(), weight, bias, None, False))
    whole = torch.compile(lambda w: ops.mamba2_inner(**{**z, "projected": w}), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(z["projected"]), out)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"groups": 5}, "norm_weight"),
        ({"groups": 0}, "groups"),
        ({"projected": torch.zeros(2, 7, 47, dtype=F64)}, "projected"),
        ({"D": torch.zeros(3, dtype=F64)}, "D"),
        ({"conv_weight": torch.zeros(30, 4, dtype=F64)}, "conv_weight"),
        ({"conv_bias": torch.zeros(30, dtype=F64)}, "conv_bias"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        ops.mamba2_inner(**{**layer(), **changes})
