"""``impl="causal_conv1d"``: the package's CUDA kernels, which need two to four taps and rows at multiples of 8."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops.common import needs


def refuses(like: Tensor) -> Exception | None:
    return needs.package("causal_conv1d", "causal_conv1d", like)


def lacks(x: Tensor, weight: Tensor) -> str | None:
    """What the package does not take, or None."""
    if 2 <= weight.shape[1] <= 4:
        return None
    return f"weight: impl 'causal_conv1d' expected K of 2 to 4 columns, got {weight.shape[1]}"


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, activation: str | None
) -> Tensor:
    from causal_conv1d import causal_conv1d_fn

    bias = None if bias is None else bias.to(weight.dtype)
    channels_last = x.stride(2) == 1 and x.shape[1] > 1 and not any(n % 8 for n in (x.shape[2], *x.stride()[:2]))
    if channels_last:
        before = None if initial_state is None else initial_state.to(x.dtype).contiguous().transpose(1, 2)
        y: Tensor = causal_conv1d_fn(x.transpose(1, 2), weight, bias, initial_states=before, activation=activation)
        return y.transpose(1, 2)
    # This layout allows any number of channels but no state, so the initial state is prepended.
    whole = x if initial_state is None else torch.cat([initial_state.to(x.dtype), x], 1)
    adjacent = whole.transpose(1, 2).clone(memory_format=torch.contiguous_format)  # for T = 1, strides too
    y = causal_conv1d_fn(adjacent, weight, bias, activation=activation)
    return y[..., -x.shape[1] :].transpose(1, 2).contiguous()
