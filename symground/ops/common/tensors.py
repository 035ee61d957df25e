"""Dtypes and layouts of the tensors that kernels receive, and running kernels without autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from symground.ops.common.compiled import constant

F = TypeVar("F", bound=Callable[..., Any])


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 for float64 inputs."""
    return torch.promote_types(x.dtype, torch.float32)


def finest(x: Tensor) -> Tensor:
    """``x`` in float64, or in float32 on a device that has no float64."""
    kind = x.device.type
    lacks = kind == "mps" or (kind == "xpu" and not torch.xpu.get_device_properties(x.device).has_fp64)
    return x.float() if lacks else x.double()


def running_sum(x: Tensor, dim: int) -> Tensor:
    """`prefix_sums`, but on a CPU, where torch's sum has a fixed order, always torch's."""
    return x.cumsum(dim) if x.device.type == "cpu" else prefix_sums(x, dim)


def prefix_sums(x: Tensor, dim: int) -> Tensor:
    """``x.cumsum(dim)``; by doubling steps if algorithms must be deterministic, which a GPU's cumsum refuses."""
    return by_doubling(x, dim) if torch.are_deterministic_algorithms_enabled() else x.cumsum(dim)


def by_doubling(x: Tensor, dim: int) -> Tensor:
    """The cumulative sum in log2(length) additions of the whole tensor."""
    step, length = 1, x.shape[dim]
    while step < length:
        later = x.narrow(dim, step, length - step) + x.narrow(dim, 0, length - step)
        x = torch.cat([x.narrow(dim, 0, step), later], dim)
        step *= 2
    return x


def with_positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """Queries and a scale above 0 that give the same scores.

    Other libraries' flash kernels mask with -inf, or take a row's maximum, before they scale. A negative scale would
    reverse this, and 0 would give NaN.
    """
    if scale > 0:
        return q, scale
    return (-q, -scale) if scale else (q * 0, 1.0)


def adjacent(x: Tensor) -> Tensor:
    """``x`` with contiguous rows that do not overlap; it is copied only if they are not so already.

    PyTorch's flash kernels and ours read rows by a pointer and a length, without checks. PyTorch's also give their
    output the order of q's strides, and write to it as if its rows were contiguous.
    """
    size = x.shape[-1]
    if x.stride(-1) == 1 and all(step >= size or n == 1 for n, step in zip(x.shape[:-1], x.stride()[:-1], strict=True)):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def padding(key_range: Tensor, stop: int, start: int = 0) -> Tensor:
    """[B, stop - start] bool: True at the positions from start to stop that are outside each example's range [B,2]."""
    j = torch.arange(start, stop, device=key_range.device)
    return (j < key_range[:, :1]) | (j >= key_range[:, 1:])


def active(device_type: str) -> bool:
    """Whether autocast would change operations on such a device now."""
    return _has_autocast(device_type) and torch.is_autocast_enabled(device_type)


@constant
def _has_autocast(device_type: str) -> bool:
    """A constant of a compiled graph: torch 2.11 cannot trace the question."""
    return torch.amp.is_autocast_available(device_type)


def without_autocast(function: F) -> F:
    """``function`` with autocast off on the device of its first argument, a tensor or a record of tensors.

    Each kernel is wrapped, not its caller: the backward pass runs under the autocast setting in force where
    ``backward`` is called.
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        first = args[0][0] if isinstance(args[0], tuple) else args[0]
        device_type = first.device.type
        if not active(device_type):
            return function(*args)
        with torch.autocast(device_type, enabled=False):
            return function(*args)

    return run  # type: ignore[return-value]
