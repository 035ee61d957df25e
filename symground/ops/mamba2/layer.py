"""The record of a Mamba-2 layer's inputs between its projections, and the layout of the concatenated ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from symground.ops.common.probes import NO_PROBES
from symground.ops.common.tensors import accumulation_dtype
from symground.ops.ssd.scan import Scan


class Layer(NamedTuple):
    """The inputs as :func:`symground.ops.mamba2_inner` documents them; low and high are its ``dt_limit``."""

    projected: Tensor  # [B,T,2·W+2·G·N+H]
    conv_weight: Tensor  # [C,K], C = W+2·G·N
    conv_bias: Tensor | None  # [C]
    dt_bias: Tensor  # [H]
    A_log: Tensor  # [H]
    D: Tensor  # [H]
    norm_weight: Tensor  # [W]
    groups: int
    eps: float
    low: float
    high: float

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self[:7]

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views: z [B,T,W], x with B and C [B,T,C], dt [B,T,H]."""
        z, xbc, dt = projected.split([self.norm_weight.shape[0], self.conv_weight.shape[0], self.dt_bias.shape[0]], -1)
        return z, xbc, dt

    def mixed(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views: x [B,T,H,P], B and C [B,T,G,N]."""
        width, heads = self.norm_weight.shape[0], self.dt_bias.shape[0]
        state = (self.conv_weight.shape[0] - width) // 2
        x, b, c = xbc.split([width, state, state], -1)
        return x.unflatten(-1, (heads, -1)), b.unflatten(-1, (self.groups, -1)), c.unflatten(-1, (self.groups, -1))


def by_parts(layer: Layer, convolve: Callable[..., Tensor], mix: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
    """The layer step by step, by an implementation's ``causal_conv1d`` and ``ssd``."""
    z, xbc, dt = layer.split(layer.projected)
    x, b, c = layer.mixed(convolve(xbc, layer.conv_weight, layer.conv_bias, None, "silu"))
    steps = step_sizes(dt, layer.dt_bias, (layer.low, layer.high))
    A = -layer.A_log.to(accumulation_dtype(layer.A_log)).exp()
    y, _ = mix(Scan(x, steps, A, b, c, None), None, NO_PROBES)
    y = y + layer.D.to(x.dtype)[:, None] * x
    return gated_norm(y.flatten(2), z, layer.norm_weight, layer.groups, layer.eps).to(layer.projected.dtype)


def step_sizes(dt: Tensor, dt_bias: Tensor, dt_limit: tuple[float, float]) -> Tensor:
    """softplus(dt + dt_bias) clamped to the limits, in at least float32."""
    steps = softplus(dt.to(torch.promote_types(dt.dtype, torch.float32)) + dt_bias)
    return steps if tuple(dt_limit) == (0.0, float("inf")) else steps.clamp(*dt_limit)


def gated_norm(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """RMSNorm(y · SiLU(z)) · weight, [B,T,W], with a mean square for each of ``groups`` parts, in at least float32."""
    dtype = torch.promote_types(y.dtype, torch.float32)
    v = (y.to(dtype) * silu(z.to(dtype))).unflatten(-1, (groups, -1))
    normed = v * torch.rsqrt(v.square().mean(-1, keepdim=True) + eps)
    scaled: Tensor = weight * normed.flatten(-2).to(y.dtype)
    return scaled
