"""The layouts that kernels take, made where a tensor has another."""

from __future__ import annotations

import torch
from torch import Tensor


def adjacent(x: Tensor) -> Tensor:
    """``x`` with the numbers of a row side by side, and no row within another: a copy only where it is otherwise.

    PyTorch's flash kernels and ours read rows by a pointer and a length, and check nothing; PyTorch's give their output
    the order of q's strides, and write to it as if its rows were so too.
    """
    size = x.shape[-1]
    if x.stride(-1) == 1 and all(step >= size or n == 1 for n, step in zip(x.shape[:-1], x.stride()[:-1], strict=True)):
        return x
    return x.clone(memory_format=torch.contiguous_format)
