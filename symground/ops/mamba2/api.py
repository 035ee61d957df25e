"""The public ops of a Mamba-2 layer: its short convolution, and all operations between its two projections."""

from __future__ import annotations

import math

from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common.dispatch import choose
from symground.ops.mamba2 import parts, reference
from symground.ops.mamba2.layer import Layer

#: The implementations by their name for ``impl``, in the order in which ``impl=None`` tries them.
IMPLEMENTATIONS = {**parts.CONVOLUTIONS, "parts": parts, "reference": reference}


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
    """A Mamba-2 layer from its input projection's result to its output projection's input, as one op for training.

    Args:
        projected: [B,T,2·W + 2·G·N + H], T at least 1: z [W], x [W], B [G·N], C [G·N] and dt [H] concatenated, W = H·P.
        conv_weight, conv_bias: [W + 2·G·N, K] and [W + 2·G·N] or None, of the convolution over x, B and C, with SiLU.
        dt_bias, A_log, D: [H]; dt = softplus(dt + dt_bias) clamped to ``dt_limit``, A = -exp(A_log), D is the skip.
        norm_weight: [W], of RMSNorm((y + D · x) · SiLU(z)), with one mean square for each of G parts.
        groups: G.
        eps: the norm's epsilon.
        dt_limit: the smallest and the largest dt.
        impl: None picks by device.

    Returns:
        [B,T,W] in the dtype of ``projected``.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value; the message names it.
        NotImplementedError: a second or forward-mode derivative was requested; only ``impl="reference"`` has them.

    Source: Dao and Gu 2024 ("Transformers are SSMs"), section 7.

    Example:
        >>> projected, heads = torch.randn(1, 5, 2 * 8 + 2 * 4 + 2), torch.randn(2)  # W = 8, G·N = 4, H = 2
        >>> conv_weight, norm_weight = torch.randn(8 + 2 * 4, 3), torch.ones(8)
        >>> ops.mamba2_inner(projected, conv_weight, None, heads, heads, heads, norm_weight).shape
        torch.Size([1, 5, 8])
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
    layer = Layer(projected, *parameters, groups, eps, *_limits(dt_limit))
    out: Tensor = choose("mamba2_inner", IMPLEMENTATIONS, impl, projected)(layer)
    return out


def _limits(dt_limit: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(dt_limit, (tuple, list)) or len(dt_limit) != 2:
        raise ValueError(f"dt_limit: expected the smallest and the largest dt, got {dt_limit!r}")
    low, high = dt_limit
    low = check.number("dt_limit", low)
    high = math.inf if isinstance(high, float) and high == math.inf else check.number("dt_limit", high)
    if not 0 <= low <= high:
        raise ValueError(f"dt_limit: expected 0 <= smallest <= largest, got {dt_limit!r}")
    return low, high


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    activation: str | None = "silu",
    *,
    impl: str | None = None,
) -> Tensor:
    """y[t,c] = activation(bias[c] + Σ_k weight[c,k] · x[t - (K-1) + k, c]), separately for each channel.

    Args:
        x: [B,T,C].
        weight: [C,K]; the last column multiplies the position itself.
        bias: [C] or None.
        initial_state: [B,K-1,C], the positions before the first; None is 0.
        activation: "silu" or None.
        impl: None picks by device: on a GPU the package "causal_conv1d", if it imports and K is 2 to 4.

    Returns:
        [B,T,C] in the dtype of x.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value; the message names it.
        NotImplementedError: a second or forward-mode derivative was requested; only ``impl="reference"`` has them.

    Source: Dao and Gu 2024 ("Transformers are SSMs"), section 7; Gu and Dao 2023 ("Mamba").

    Example:
        >>> x, weight = torch.randn(1, 5, 8), torch.randn(8, 3)
        >>> padded = torch.nn.functional.pad(x.mT, (2, 0))
        >>> by_hand = torch.nn.functional.conv1d(padded, weight[:, None], groups=8).mT
        >>> torch.allclose(ops.causal_conv1d(x, weight, activation=None), by_hand, atol=1e-5)
        True
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
    check.choice("activation", activation, ("silu", None))
    run = choose("causal_conv1d", IMPLEMENTATIONS, impl, x, weight)
    y: Tensor = run(x, weight, bias, initial_state, activation)
    return y
