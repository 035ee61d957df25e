"""The specification of Mamba-2's ops, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from symground.ops.common import needs
from symground.ops.common.tensors import accumulation_dtype
from symground.ops.mamba2.layer import Layer, by_parts
from symground.ops.ssd.reference import ssd

refuses = needs.nothing


def mamba2_inner(layer: Layer) -> Tensor:
    return by_parts(layer, causal_conv1d, ssd)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, activation: str | None
) -> Tensor:
    (batch, length, channels), taps = x.shape, weight.shape[1]
    before = x.new_zeros(batch, taps - 1, channels) if initial_state is None else initial_state
    dtype = torch.promote_types(accumulation_dtype(x), before.dtype)
    whole = torch.cat([before.to(dtype), x.to(dtype)], 1)  # [B,K-1+T,C]
    level = x.new_zeros(()) if bias is None else bias
    y = sum((weight[:, k] * whole[:, k : k + length] for k in range(taps)), level)
    return (silu(y) if activation else y).to(x.dtype)
