"""A Mamba-2 layer between its two projections: short convolution, SSD with the D skip, gated norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from symground.ops import _checks as check
from symground.ops._dispatch import choose
from symground.ops._mamba2_cpu import mamba2_inner_cpu
from symground.ops._precision import accumulation_dtype
from symground.ops.causal_conv1d import causal_conv1d
from symground.ops.ssd import ssd


def mamba2_inner(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    groups: int = 1,
    eps: float = 1e-5,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    *,
    impl: str | None = None,
) -> Tensor:
    """What stands between a Mamba-2 layer's input and output projection, as one op: what a training step runs.

    Args:
        projected: [B,T,2·W + 2·G·N + H], T at least 1, side by side z [W], x [W], B [G·N], C [G·N], dt [H], W = H·P.
        conv_weight, conv_bias: [W + 2·G·N, K] and [W + 2·G·N] or None, of the convolution over x, B and C, with SiLU.
        dt_bias, A_log, D: [H]; dt = softplus(dt + dt_bias) within ``dt_limit``, A = -exp(A_log), D the skip.
        norm_weight: [W], of RMSNorm((y + D · x) · SiLU(z)), whose mean square is of each of G parts.
        groups: G.
        eps: of the norm.
        dt_limit: the smallest and the largest dt.
        impl: None picks by device.

    Returns:
        [B,T,W] in the dtype of ``projected``.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, by the name of the argument.
        NotImplementedError: a second derivative, or one in forward mode, but by ``impl="reference"``.

    Source: Dao and Gu 2024 ("Transformers are SSMs"), section 7.
    """
    check.has_shape("projected", projected, "B,T,2·W+2·G·N+H", (None,) * 3)
    check.is_floating("projected", projected)
    if projected.shape[1] == 0:
        raise ValueError("projected: expected at least one position, got T = 0")
    check.has_shape("norm_weight", norm_weight, "W", (None,))
    check.has_shape("dt_bias", dt_bias, "H", (None,))
    width, heads, groups = norm_weight.shape[0], dt_bias.shape[0], check.integer("groups", groups, 1)
    channels = projected.shape[2] - width - heads
    for name, value in (("A_log", A_log), ("D", D)):
        check.has_shape(name, value, "H", (heads,))
    if heads == 0 or width == 0 or width % heads or heads % groups:
        raise ValueError(
            f"norm_weight: expected W and H above 0, H = {heads} to divide W and G = {groups} to divide H, got "
            f"W = {width}"
        )
    if channels <= width or (channels - width) % (2 * groups):
        raise ValueError(
            f"projected: expected 2·W + 2·G·N + H = {2 * width} + {2 * groups}·N + {heads} numbers, got "
            f"{projected.shape[2]}"
        )
    check.has_shape("conv_weight", conv_weight, "W+2·G·N,K", (channels, None))
    if conv_weight.shape[1] == 0:
        raise ValueError("conv_weight: expected at least one column, got K = 0")
    if conv_bias is not None:
        check.has_shape("conv_bias", conv_bias, "W+2·G·N", (channels,))
    parameters = (conv_weight, conv_bias, dt_bias, A_log, D, norm_weight)
    names = ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")
    for name, tensor in zip(names, parameters, strict=True):
        if tensor is not None:
            check.is_floating(name, tensor)
            check.matches(name, tensor, "projected", projected, dtype=False)
    eps = check.number("eps", eps)
    if eps < 0:
        raise ValueError(f"eps: expected a number of at least 0, got {eps}")
    run = choose("mamba2_inner", IMPLEMENTATIONS, impl, projected)
    return run(projected, *parameters, groups, eps, _limits(dt_limit))


def _limits(dt_limit: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(dt_limit, (tuple, list)) or len(dt_limit) != 2:
        raise ValueError(f"dt_limit: expected the smallest and the largest dt, got {dt_limit!r}")
    low, high = dt_limit
    low = check.number("dt_limit", low)
    high = math.inf if isinstance(high, float) and high == math.inf else check.number("dt_limit", high)
    if not 0 <= low <= high:
        raise ValueError(f"dt_limit: expected 0 <= smallest <= largest, got {dt_limit!r}")
    return low, high


def mamba2_inner_reference(
    projected: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, dt_bias: Tensor, A_log: Tensor, D: Tensor,
    norm_weight: Tensor, groups: int, eps: float, dt_limit: tuple[float, float], impl: str | None = "reference",
) -> Tensor:  # fmt: skip
    """The specification; of the parts' specifications, or of what ``impl`` names."""
    width, heads, channels = norm_weight.shape[0], dt_bias.shape[0], conv_weight.shape[0]
    z, xbc, dt = projected.split([width, channels, heads], -1)
    state = (channels - width) // 2
    x, b, c = causal_conv1d(xbc, conv_weight, conv_bias, impl=impl).split([width, state, state], -1)
    x, b, c = x.unflatten(-1, (heads, -1)), b.unflatten(-1, (groups, -1)), c.unflatten(-1, (groups, -1))
    dt, A = step_sizes(dt, dt_bias, dt_limit), -A_log.to(accumulation_dtype(A_log)).exp()
    y = ssd(x, dt, A, b, c, impl=impl) + D.to(x.dtype)[:, None] * x
    return gated_norm(y.flatten(2), z, norm_weight, groups, eps).to(projected.dtype)


def step_sizes(dt: Tensor, dt_bias: Tensor, dt_limit: tuple[float, float]) -> Tensor:
    """softplus(dt + dt_bias) within the limits, in at least float32."""
    steps = softplus(dt.to(torch.promote_types(dt.dtype, torch.float32)) + dt_bias)
    return steps if tuple(dt_limit) == (0.0, float("inf")) else steps.clamp(*dt_limit)


def gated_norm(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """RMSNorm(y · SiLU(z)) · weight, [B,T,W], the mean square of each of ``groups`` parts; in at least float32."""
    dtype = torch.promote_types(y.dtype, torch.float32)
    v = (y.to(dtype) * silu(z.to(dtype))).unflatten(-1, (groups, -1))
    normed = v * torch.rsqrt(v.square().mean(-1, keepdim=True) + eps)
    scaled: Tensor = weight * normed.flatten(-2).to(y.dtype)
    return scaled


IMPLEMENTATIONS = {"reference": mamba2_inner_reference, "cpu": mamba2_inner_cpu}
