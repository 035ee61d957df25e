"""What results are computed in, and what other kernels would lose of them."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 for float64 inputs."""
    return torch.promote_types(x.dtype, torch.float32)


def with_positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """Queries and a scale above 0 that give the same scores.

    Other libraries' flash kernels mask with -inf before they scale, or take a row's maximum before: a negative scale
    would turn that around, and 0 make NaN of it.
    """
    if scale > 0:
        return q, scale
    return (-q, -scale) if scale else (q * 0, 1.0)
