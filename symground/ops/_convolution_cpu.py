"""The ``cpu`` implementation of the short convolution: by the C++ extension where it is built, else the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from symground.ops import _extension
from symground.ops._layout import adjacent
from symground.ops._library import define
from symground.ops._precision import accumulation_dtype


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool, out: Tensor
) -> None:
    """Write the convolution of x [B,T,C], whose channels are adjacent, to ``out``, likewise; by the extension."""
    taps, level, initial = _parameters(weight, bias, initial_state)
    _extension.library.convolution(x, taps, level, initial, silu, out)


def convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool, dx: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the gradient of x to ``dx``; return those of weight [C,K] and bias [C]."""
    taps, level, initial = _parameters(weight, bias, initial_state)
    together = x.new_empty(weight.shape[1] + 1, weight.shape[0])
    _extension.library.convolution_backward(grad, x, taps, level, initial, silu, dx, together)
    # Tensors of their own: what an op returns may share no memory.
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
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    given, wide, level, initial = _in_one_dtype(x, weight, bias, initial_state)
    assert given is not None
    assert wide is not None
    out = torch.empty(x.shape, dtype=given.dtype)
    convolve(adjacent(given), wide, level, initial, silu, out)
    return out.to(x.dtype)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if x.numel() == 0:
        of_bias = (weight if bias is None else bias).new_zeros(weight.shape[0])
        return x.new_zeros(x.shape), weight.new_zeros(weight.shape), of_bias
    given, wide, level, initial = _in_one_dtype(x, weight, bias, initial_state)
    assert given is not None
    assert wide is not None
    dx = torch.empty(x.shape, dtype=given.dtype)
    of_weight, of_bias = convolve_backward(
        adjacent(grad.to(given.dtype)), adjacent(given), wide, level, initial, silu, dx
    )  # fmt: skip
    return dx.to(x.dtype), of_weight.to(weight.dtype), of_bias.to((weight if bias is None else bias).dtype)


_CONVOLUTION = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, bool silu"
_convolution = define(
    "causal_conv1d", "cpu", _forward, f"({_CONVOLUTION}) -> Tensor", "cpu"
)  # fmt: skip
_gradients = define(
    "causal_conv1d_backward", "cpu", _backward, f"(Tensor grad, {_CONVOLUTION}) -> (Tensor, Tensor, Tensor)", "cpu",
)  # fmt: skip


def _in_one_dtype(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    dtype = accumulation_dtype(x)
    for z in others:
        dtype = dtype if z is None else torch.promote_types(dtype, z.dtype)
    return tuple(None if z is None else z.to(dtype) for z in (x, *others))


@_convolution.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_gradients.register_fake  # type: ignore[untyped-decorator]
def _(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    level = weight if bias is None else bias
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        level.new_empty(weight.shape[0]),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *saved, ctx.silu = inputs
    ctx.save_for_backward(*saved)


def _back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    found = _gradients(grad, *ctx.saved_tensors, ctx.silu)
    need = ctx.needs_input_grad[:3]
    return *(g if wanted else None for g, wanted in zip(found, need, strict=True)), None, None


_convolution.register_autograd(_back, setup_context=_setup)


def causal_conv1d_cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, activation: str | None
) -> Tensor:
    from symground.ops.causal_conv1d import causal_conv1d_reference

    wants_state = initial_state is not None and initial_state.requires_grad and torch.is_grad_enabled()
    if not _built() or wants_state:  # the gradient of a state is nothing that training or analysis asks for
        return causal_conv1d_reference(x, weight, bias, initial_state, activation)
    out: Tensor = _convolution(x, weight, bias, initial_state, activation is not None)
    return out


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _built() -> bool:
    return _extension.library is not None
