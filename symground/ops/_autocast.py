"""Ops that give the same under torch.autocast as without it, in the dtypes that their docstrings say."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def active(device_type: str) -> bool:
    """Whether autocast would change what runs on such a device now."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def without_autocast(function: F) -> F:
    """``function``, whose first argument is a tensor, with autocast off on that tensor's device.

    Kernels are wrapped each for itself and not in what calls them: on the way back they run under whatever is set where
    ``backward`` is called.
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        device_type = args[0].device.type
        if not active(device_type):
            return function(*args)
        with torch.autocast(device_type, enabled=False):
            return function(*args)

    return run  # type: ignore[return-value]
