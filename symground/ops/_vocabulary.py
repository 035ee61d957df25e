"""What the ops that read a vocabulary head share: the checks of (hidden, weight, bias, candidates) and the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops import _checks as check
from symground.ops._functions import product


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, dims: str = "N,D") -> None:
    """``dims`` is the shape of hidden in letters: rows, or rows of each layer."""
    check.has_shape("hidden", hidden, dims, (None,) * len(dims.split(",")))
    check.is_floating("hidden", hidden)
    if hidden.shape[-1] == 0:
        raise ValueError("hidden: expected at least one number in a row, got D = 0")
    check.has_shape("weight", weight, "V,D", (None, hidden.shape[-1]))
    check.matches("weight", weight, "hidden", hidden)
    if bias is not None:
        check.has_shape("bias", bias, "V", (weight.shape[0],))
        check.is_floating("bias", bias)
        check.matches("bias", bias, "hidden", hidden, dtype=False)


def check_candidates(candidates: Tensor, rows: int, like: Tensor, vocabulary: int) -> Tensor:
    """The candidates as int64."""
    candidates = check.integers("candidates", candidates)
    if candidates.ndim not in (1, 2) or (candidates.ndim == 2 and candidates.shape[0] != rows):
        raise ValueError(f"candidates: expected shape [K] or [N,K] with N = {rows}, got {list(candidates.shape)}")
    if candidates.shape[-1] == 0:
        raise ValueError("candidates: expected at least one candidate, got none")
    check.matches("candidates", candidates, "hidden", like, dtype=False)
    in_vocabulary = (candidates >= 0) & (candidates < vocabulary)
    check.values(in_vocabulary, "candidates: expected ids in [0, V)", candidates, V=vocabulary)
    return candidates


def logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[N,V] in at least float32."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    out = product(hidden.to(dtype), weight.to(dtype).mT)
    return out if bias is None else out + bias.to(dtype)
