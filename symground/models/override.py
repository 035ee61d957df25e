"""Other forward functions of a model's own modules for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def forward_as(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Other forward functions of these very modules within the block; no class is touched."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            object.__setattr__(module, "forward", forward)
        yield
    finally:
        for module, own in before.items():
            if own is not None:
                object.__setattr__(module, "forward", own)
            elif "forward" in vars(module):
                object.__delattr__(module, "forward")
