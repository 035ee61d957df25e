"""The ``cpu`` implementation of a Mamba-2 layer between its projections, by the C++ extension.

As one op it keeps fewer tensors for the backward pass than its parts would: only its input and y. It recomputes the
convolution, which is cheaper than storing it. The parts' gradients are written straight into the gradient of
``projected``. Without the extension, or in half precision, the parts run one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from symground.ops.common import extension, needs
from symground.ops.common.register import Derivative, Op, save, saved
from symground.ops.common.tensors import adjacent
from symground.ops.mamba2.cpu_convolution import causal_conv1d, convolve, convolve_backward
from symground.ops.mamba2.layer import Layer, by_parts
from symground.ops.ssd.cpu import ops as ssd_ops

__all__ = ["causal_conv1d", "mamba2_inner", "refuses"]

refuses = needs.cpu


def _forward(layer: Layer) -> tuple[Tensor, Tensor]:
    """The layer's output, and y before the skip, both [B,T,W]."""
    projected, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, groups, eps, low, high = layer
    library = extension.library
    z, xbc, dt = layer.split(projected)
    mixed = torch.empty(xbc.shape, dtype=xbc.dtype)
    convolve(xbc, conv_weight, conv_bias, None, True, mixed)
    x, b, c = layer.mixed(mixed)
    steps = softplus(dt + dt_bias).clamp_(low, high)
    y = torch.empty(x.shape, dtype=x.dtype)
    state = x.new_empty(x.shape[0], *x.shape[2:], b.shape[3])
    library.ssd(x, steps, -A_log.exp(), b, c, None, None, y, state)
    y = y.flatten(2)
    out = torch.empty_like(y)
    library.gated_norm(y, x.flatten(2), D, z, norm_weight, groups, eps, out)
    return out, y


def _backward(grad: Tensor, y: Tensor, layer: Layer) -> tuple[Tensor, ...]:
    """The gradients of the layer's seven tensors."""
    projected, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, groups, eps, low, high = layer
    library, heads = extension.library, dt_bias.shape[0]
    z, xbc, dt = layer.split(projected)
    mixed = torch.empty(xbc.shape, dtype=xbc.dtype)
    convolve(xbc, conv_weight, conv_bias, None, True, mixed)
    x, b, c = layer.mixed(mixed)
    raw, A = dt + dt_bias, -A_log.exp()
    steps = softplus(raw).clamp_(low, high)
    of_projected, of_mixed = torch.empty(projected.shape, dtype=projected.dtype), torch.empty_like(mixed)
    of_z, of_xbc, of_dt = layer.split(of_projected)
    of_x, of_b, of_c = layer.mixed(of_mixed)
    of_y, of_skip, of_weight = torch.empty_like(y), D.new_empty(D.shape), norm_weight.new_empty(norm_weight.shape)
    library.gated_norm_backward(
        grad.contiguous(), y, x.flatten(2), D, z, norm_weight, groups, eps, of_y, of_x.flatten(2), of_skip, of_z,
        of_weight,
    )  # fmt: skip
    of_steps, of_A = torch.empty(steps.shape, dtype=steps.dtype), A.new_zeros(x.shape[0], heads)
    unread = x.new_empty(x.shape[0], *x.shape[2:], b.shape[3])
    grad_y = of_y.unflatten(-1, (heads, -1))
    library.ssd_backward(grad_y, None, x, steps, A, b, c, None, None, of_x, of_steps, of_A, of_b, of_c, unread)
    of_raw = torch.mul(of_steps, torch.sigmoid(raw), out=of_dt)
    if (low, high) != (0.0, float("inf")):
        of_raw.masked_fill_((steps <= low) | (steps >= high), 0)
    of_conv, of_conv_bias = convolve_backward(of_mixed, xbc, conv_weight, conv_bias, None, True, of_xbc)
    of_bias, of_log = of_raw.sum((0, 1)), of_A.sum(0) * A
    return of_projected, of_conv, of_conv_bias, of_bias, of_log, of_skip, of_weight


def _outputs(layer: Layer) -> tuple[Tensor, Tensor]:
    out = layer.projected.new_zeros(*layer.projected.shape[:2], layer.norm_weight.shape[0])
    return out, torch.zeros_like(out)


def _gradients(grad: Tensor, y: Tensor, layer: Layer) -> tuple[Tensor, ...]:
    projected, conv_weight, _, *others = layer[:7]
    zeros = [z.new_zeros(z.shape) for z in (projected, conv_weight, *others)]
    return *zeros[:2], conv_weight.new_zeros(conv_weight.shape[0]), *zeros[2:]


def _keep(ctx: Any, output: tuple[Tensor, Tensor], layer: Layer) -> None:
    save(ctx, output[1], layer)
    ctx.mark_non_differentiable(output[1])


_inner_backward = Op(
    "mamba2_inner_backward", _backward, ["Tensor grad", "Tensor y", Layer], _gradients, impl="cpu", returns=7,
    cpu_only=True,
)  # fmt: skip
_inner = Op(
    "mamba2_inner", _forward, [Layer], _outputs, returns=2, impl="cpu", cpu_only=True,
    derivative=Derivative(
        _keep, lambda ctx, needs, grad, _: ((*_inner_backward(grad, *saved(ctx)), None, None, None, None),)
    ),
)  # fmt: skip


def mamba2_inner(layer: Layer) -> Tensor:
    dtypes = {z.dtype for z in layer.tensors if z is not None}
    if not extension.is_built() or dtypes not in ({torch.float32}, {torch.float64}) or layer.projected.shape[0] == 0:
        return by_parts(layer, causal_conv1d, ssd_ops.ssd)
    # Parameters are small, and the extension needs them contiguous.
    out: Tensor = _inner(Layer(adjacent(layer.projected), *(_contiguous(z) for z in layer[1:])))[0]
    return out


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value
