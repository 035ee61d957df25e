"""Mamba-2's state-space mixing (SSD), the second mixer with heads beside softmax attention."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops import _checks as check
from symground.ops._dispatch import choose
from symground.ops._ssd import check_ssd, decay, in_range, mixing_matrix


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    key_range: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    impl: str | None = None,
) -> Tensor:
    """y = M x per head, M = (C Bᵀ) ∘ exp(segsum(dt·A)) · dt lower-triangular; no D skip.

    Args:
        x: [B,T,H,P] inputs of the heads.
        dt: [B,T,H] step sizes, after softplus.
        A: [H] decay rates, negative.
        B, C: [B,T,G,N]; G divides H, head h uses group h // (H/G).
        key_range: [B,2] int, first and one-past-last valid position; others neither write to the state nor decay it.
        initial_state: [B,H,P,N] state before the first position; None is 0.
        impl: None picks by device.

    Returns:
        [B,T,H,P] in the dtype of x.

    Raises:
        ValueError: a shape, dtype, device or value that does not fit, by the name of the argument.

    Source: Dao and Gu 2024 ("Transformers are SSMs"), section 6, the quadratic dual form.
    """
    check_ssd(x, dt, A, B, C, key_range)
    if initial_state is not None:
        check.has_shape("initial_state", initial_state, "B,H,P,N", (x.shape[0], x.shape[2], x.shape[3], B.shape[3]))
        check.matches("initial_state", initial_state, "x", x, dtype=False)
    return choose("ssd", IMPLEMENTATIONS, impl, x)(x, dt, A, B, C, key_range, initial_state)


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    key_range: Tensor | None,
    initial_state: Tensor | None,
) -> Tensor:
    """The specification."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    dt, A = in_range(dt.to(dtype), key_range), A.to(dtype)
    y = mixing_matrix(dt, A, B, C) @ x.to(dtype).transpose(1, 2)  # [B,H,T,P]
    if initial_state is not None:
        c = C.to(dtype).repeat_interleave(x.shape[2] // C.shape[2], dim=2).transpose(1, 2)  # [B,H,T,N]
        y = y + decay(dt, A).exp()[..., None] * (c @ initial_state.to(dtype).mT)
    return y.transpose(1, 2).to(x.dtype)


IMPLEMENTATIONS = {"reference": ssd_reference}
