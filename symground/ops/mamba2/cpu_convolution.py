"""The ``cpu`` implementation of the short convolution: the C++ extension if it is built, else the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from symground.ops.common import extension
from symground.ops.common.register import Derivative, Op, save, saved
from symground.ops.common.tensors import accumulation_dtype, adjacent
from symground.ops.mamba2 import reference


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool, out: Tensor
) -> None:
    """Write the convolution of x [B,T,C] to ``out``, by the extension; both have contiguous channels."""
    taps, level, initial = _parameters(weight, bias, initial_state)
    extension.library.convolution(x, taps, level, initial, silu, out)


def convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool, dx: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the gradient of x to ``dx``; return those of weight [C,K] and bias [C]."""
    taps, level, initial = _parameters(weight, bias, initial_state)
    together = x.new_empty(weight.shape[1] + 1, weight.shape[0])
    extension.library.convolution_backward(grad, x, taps, level, initial, silu, dx, together)
    # Copies, because the results of an op must not share memory.
    return together[:-1].T.clone(memory_format=torch.contiguous_format), together[-1].clone()


def _parameters(
    weight: Tensor, bias: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return (
        weight.T.contiguous(),
        None if bias is None else bias.contiguous(),
        None if initial_state is None else initial_state.contiguous(),
    )


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool) -> Tensor:
    given, wide, level, initial = _in_one_dtype(x, weight, bias, initial_state)
    assert given is not None
    assert wide is not None
    out = torch.empty(x.shape, dtype=given.dtype)
    convolve(adjacent(given), wide, level, initial, silu, out)
    return out.to(x.dtype)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    given, wide, level, initial = _in_one_dtype(x, weight, bias, initial_state)
    assert given is not None
    assert wide is not None
    dx = torch.empty(x.shape, dtype=given.dtype)
    of_weight, of_bias = convolve_backward(
        adjacent(grad.to(given.dtype)), adjacent(given), wide, level, initial, silu, dx
    )  # fmt: skip
    return dx.to(x.dtype), of_weight.to(weight.dtype), of_bias.to((weight if bias is None else bias).dtype)


def _in_one_dtype(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    dtype = accumulation_dtype(x)
    for z in others:
        dtype = dtype if z is None else torch.promote_types(dtype, z.dtype)
    return tuple(None if z is None else z.to(dtype) for z in (x, *others))


# The ops' results where there is nothing to read.


def _outputs(x: Tensor, *rest: Any) -> Tensor:
    return x.new_zeros(x.shape)


def _zeros(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    level = weight if bias is None else bias
    return x.new_zeros(x.shape), weight.new_zeros(weight.shape), level.new_zeros(weight.shape[0])


_TAKES = ["Tensor x", "Tensor weight", "Tensor? bias", "Tensor? initial_state", "bool silu"]
_gradients = Op(
    "causal_conv1d_backward", _backward, ["Tensor grad", *_TAKES], _zeros, returns=3, impl="cpu", cpu_only=True,
    is_empty=lambda grad, *rest: grad.numel() == 0,
)  # fmt: skip
_convolution = Op(
    "causal_conv1d", _forward, _TAKES, _outputs, impl="cpu", cpu_only=True, is_empty=lambda x, *rest: x.numel() == 0,
    derivative=Derivative(
        lambda ctx, output, *inputs: save(ctx, *inputs),
        lambda ctx, needs, grad: (*_gradients(grad, *saved(ctx)), None, None),
    ),
)  # fmt: skip


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, activation: str | None
) -> Tensor:
    wants_state = initial_state is not None and initial_state.requires_grad and torch.is_grad_enabled()
    if not extension.is_built() or wants_state:  # neither training nor analysis needs a state's gradient
        return reference.causal_conv1d(x, weight, bias, initial_state, activation)
    out: Tensor = _convolution(x, weight, bias, initial_state, activation is not None)
    return out
