"""Mamba-2's short convolution: depthwise, causal, with SiLU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from symground.ops import _checks as check
from symground.ops._causal_conv1d import causal_conv1d_package, suits
from symground.ops._convolution_cpu import causal_conv1d_cpu
from symground.ops._dispatch import choose
from symground.ops._precision import accumulation_dtype


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    activation: str | None = "silu",
    *,
    impl: str | None = None,
) -> Tensor:
    """y[t,c] = activation(bias[c] + Σ_k weight[c,k] · x[t - (K-1) + k, c]), each channel for itself.

    Args:
        x: [B,T,C].
        weight: [C,K]; the last column meets the position itself.
        bias: [C] or None.
        initial_state: [B,K-1,C], what stood before the first position; None is 0.
        activation: "silu" or None.
        impl: None picks by device: on a GPU "causal_conv1d", the package, where it imports and K is 2 to 4.

    Returns:
        [B,T,C] in the dtype of x.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, by the name of the argument.
        NotImplementedError: a second derivative, or one in forward mode, but by ``impl="reference"``.

    Source: Dao and Gu 2024 ("Transformers are SSMs"), section 7; Gu and Dao 2023 ("Mamba").
    """
    check.has_shape("x", x, "B,T,C", (None,) * 3)
    check.is_floating("x", x)
    batch, _, channels = x.shape
    check.has_shape("weight", weight, "C,K", (channels, None))
    if weight.shape[1] == 0:
        raise ValueError("weight: expected at least one column, got K = 0")
    if bias is not None:
        check.has_shape("bias", bias, "C", (channels,))
    if initial_state is not None:
        check.has_shape("initial_state", initial_state, "B,K-1,C", (batch, weight.shape[1] - 1, channels))
    for name, value in (("weight", weight), ("bias", bias), ("initial_state", initial_state)):
        if value is not None:
            check.is_floating(name, value)
            check.matches(name, value, "x", x, dtype=False)
    if activation not in ("silu", None):
        raise ValueError(f"activation: expected 'silu' or None, got {activation!r}")
    run = choose("causal_conv1d", IMPLEMENTATIONS, impl, x, () if suits(weight) else ("causal_conv1d",))
    return run(x, weight, bias, initial_state, activation)


def causal_conv1d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, activation: str | None
) -> Tensor:
    """The specification."""
    (batch, length, channels), taps = x.shape, weight.shape[1]
    before = x.new_zeros(batch, taps - 1, channels) if initial_state is None else initial_state
    dtype = torch.promote_types(accumulation_dtype(x), before.dtype)
    whole = torch.cat([before.to(dtype), x.to(dtype)], 1)  # [B,K-1+T,C]
    level = x.new_zeros(()) if bias is None else bias
    y = sum((weight[:, k] * whole[:, k : k + length] for k in range(taps)), level)
    return (silu(y) if activation else y).to(x.dtype)


IMPLEMENTATIONS = {
    "reference": causal_conv1d_reference,
    "cpu": causal_conv1d_cpu,
    "causal_conv1d": causal_conv1d_package,
}
