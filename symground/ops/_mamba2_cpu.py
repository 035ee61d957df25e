"""The ``cpu`` implementation of a Mamba-2 layer between its projections, by the C++ extension.

One op keeps what the parts would each keep and copy: of a layer, only its input and y are saved for the way back, the
convolution being cheaper to do again than to store; and the gradients of the parts are written side by side, where the
input projection wants them. Without the extension, or in half precision, the parts run one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from symground.ops import _extension
from symground.ops._convolution_cpu import convolve, convolve_backward
from symground.ops._layout import adjacent
from symground.ops._library import define


class _Sizes:
    """Of what stands side by side in ``projected``."""

    def __init__(self, norm_weight: Tensor, dt_bias: Tensor, conv_weight: Tensor) -> None:
        self.width, self.heads, self.channels = norm_weight.shape[0], dt_bias.shape[0], conv_weight.shape[0]

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views: z [B,T,W], x with B and C [B,T,C], dt [B,T,H]."""
        z, xbc, dt = projected.split([self.width, self.channels, self.heads], -1)
        return z, xbc, dt

    def mixed(self, xbc: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """Views: x [B,T,H,P], B and C [B,T,G,N]."""
        state = (self.channels - self.width) // 2
        x, b, c = xbc.split([self.width, state, state], -1)
        return x.unflatten(-1, (self.heads, -1)), b.unflatten(-1, (groups, -1)), c.unflatten(-1, (groups, -1))


def _forward(
    projected: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, dt_bias: Tensor, A_log: Tensor, D: Tensor,
    norm_weight: Tensor, groups: int, eps: float, low: float, high: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The layer's output and y, before the skip, both [B,T,W]."""
    library, sizes = _extension.library, _Sizes(norm_weight, dt_bias, conv_weight)
    z, xbc, dt = sizes.split(projected)
    mixed = torch.empty(xbc.shape, dtype=xbc.dtype)
    convolve(xbc, conv_weight, conv_bias, None, True, mixed)
    x, b, c = sizes.mixed(mixed, groups)
    steps = softplus(dt + dt_bias).clamp_(low, high)
    y = torch.empty(x.shape, dtype=x.dtype)
    state = x.new_empty(x.shape[0], *x.shape[2:], b.shape[3])
    library.ssd(x, steps, -A_log.exp(), b, c, None, None, y, state)
    y = y.flatten(2)
    out = torch.empty_like(y)
    library.gated_norm(y, x.flatten(2), D, z, norm_weight, groups, eps, out)
    return out, y


def _backward(
    grad: Tensor, projected: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, dt_bias: Tensor, A_log: Tensor,
    D: Tensor, norm_weight: Tensor, y: Tensor, groups: int, eps: float, low: float, high: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    library, sizes = _extension.library, _Sizes(norm_weight, dt_bias, conv_weight)
    z, xbc, dt = sizes.split(projected)
    mixed = torch.empty(xbc.shape, dtype=xbc.dtype)
    convolve(xbc, conv_weight, conv_bias, None, True, mixed)
    x, b, c = sizes.mixed(mixed, groups)
    raw, A = dt + dt_bias, -A_log.exp()
    steps = softplus(raw).clamp_(low, high)
    of_projected, of_mixed = torch.empty(projected.shape, dtype=projected.dtype), torch.empty_like(mixed)
    of_z, of_xbc, of_dt = sizes.split(of_projected)
    of_x, of_b, of_c = sizes.mixed(of_mixed, groups)
    of_y, of_skip, of_weight = torch.empty_like(y), D.new_empty(D.shape), norm_weight.new_empty(norm_weight.shape)
    library.gated_norm_backward(
        grad.contiguous(), y, x.flatten(2), D, z, norm_weight, groups, eps, of_y, of_x.flatten(2), of_skip, of_z,
        of_weight,
    )  # fmt: skip
    of_steps, of_A = torch.empty(steps.shape, dtype=steps.dtype), A.new_zeros(x.shape[0], sizes.heads)
    unread = x.new_empty(x.shape[0], *x.shape[2:], b.shape[3])
    grad_y = of_y.unflatten(-1, (sizes.heads, -1))
    library.ssd_backward(grad_y, None, x, steps, A, b, c, None, None, of_x, of_steps, of_A, of_b, of_c, unread)
    of_raw = torch.mul(of_steps, torch.sigmoid(raw), out=of_dt)
    if (low, high) != (0.0, float("inf")):
        of_raw.masked_fill_((steps <= low) | (steps >= high), 0)
    of_conv, of_conv_bias = convolve_backward(of_mixed, xbc, conv_weight, conv_bias, None, True, of_xbc)
    of_bias, of_log = of_raw.sum((0, 1)), of_A.sum(0) * A
    return of_projected, of_conv, of_conv_bias, of_bias, of_log, of_skip, of_weight


_PARAMETERS = "Tensor conv_weight, Tensor? conv_bias, Tensor dt_bias, Tensor A_log, Tensor D, Tensor norm_weight"
_SETTINGS = "int groups, float eps, float low, float high"
_inner = define(
    "mamba2_inner", "cpu", _forward, f"(Tensor projected, {_PARAMETERS}, {_SETTINGS}) -> (Tensor, Tensor)", "cpu",
)  # fmt: skip
_gradients = define(
    "mamba2_inner_backward", "cpu", _backward,
    f"(Tensor grad, Tensor projected, {_PARAMETERS}, Tensor y, {_SETTINGS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "cpu",
)  # fmt: skip


@_inner.register_fake  # type: ignore[untyped-decorator]
def _(projected: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, dt_bias: Tensor, A_log: Tensor, D: Tensor,
      norm_weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:  # fmt: skip
    out = projected.new_empty(*projected.shape[:2], norm_weight.shape[0])
    return out, torch.empty_like(out)


@_gradients.register_fake  # type: ignore[untyped-decorator]
def _(grad: Tensor, projected: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, dt_bias: Tensor, A_log: Tensor,
      D: Tensor, norm_weight: Tensor, *_: Any) -> tuple[Tensor, ...]:  # fmt: skip
    level = conv_weight.new_empty(conv_weight.shape[0])
    like = (torch.empty_like(z, memory_format=torch.contiguous_format) for z in (dt_bias, A_log, D, norm_weight))
    return (
        projected.new_empty(projected.shape), conv_weight.new_empty(conv_weight.shape), level, *like,
    )  # fmt: skip


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.settings = inputs[7:]


def _back(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    found = _gradients(grad, *ctx.saved_tensors, *ctx.settings)
    need = ctx.needs_input_grad[:7]
    return *(g if wanted else None for g, wanted in zip(found, need, strict=True)), None, None, None, None


_inner.register_autograd(_back, setup_context=_setup)


def mamba2_inner_cpu(
    projected: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, dt_bias: Tensor, A_log: Tensor, D: Tensor,
    norm_weight: Tensor, groups: int, eps: float, dt_limit: tuple[float, float],
) -> Tensor:  # fmt: skip
    from symground.ops.mamba2_inner import mamba2_inner_reference

    tensors = (projected, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight)
    dtypes = {z.dtype for z in tensors if z is not None}
    if not _built() or dtypes not in ({torch.float32}, {torch.float64}) or projected.shape[0] == 0:
        return mamba2_inner_reference(*tensors, groups, eps, dt_limit, impl=None)
    given = adjacent(projected)
    # Parameters are small, and the extension reads them side by side.
    parameters = (None if z is None else z.contiguous() for z in tensors[1:])
    out: Tensor = _inner(given, *parameters, groups, eps, *dt_limit)[0]
    return out


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _built() -> bool:
    return _extension.library is not None
