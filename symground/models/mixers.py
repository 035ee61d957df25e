"""Mixers with heads: what the analyses see of a layer, whatever the architecture.

A mixer is a module that mixes positions with one matrix per head. What an analysis asks of it (probes, gates) is laid
on the module as a `Tap`, which the mixer's forward reads; nothing else of the model is touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor, nn

_TAP = "_symground_tap"


@dataclass(frozen=True)
class Tap:
    """What is asked of one mixer in the next forward passes; see :func:`symground.ops.attention` for the shapes."""

    gate: Tensor | None = None
    saliency_probe: Tensor | None = None
    flow_probe: Tensor | None = None
    query_groups: Tensor | None = None
    key_groups: Tensor | None = None

    @property
    def idle(self) -> bool:
        return self.gate is None and self.saliency_probe is None and self.flow_probe is None


IDLE = Tap()


@dataclass(frozen=True)
class Mixer:
    """One layer's mixer: its number from 0, how many heads it has, and the module."""

    layer: int
    heads: int
    module: nn.Module

    @property
    def tap(self) -> Tap:
        return tap_of(self.module)

    @contextmanager
    def tapped(self, **changes: Tensor | None) -> Iterator[None]:
        """Change the mixer's tap within the block; what was there before comes back, also after an exception."""
        before = self.tap
        setattr(self.module, _TAP, replace(before, **changes))
        try:
            yield
        finally:
            setattr(self.module, _TAP, before)


def tap_of(module: nn.Module) -> Tap:
    tap: Tap = getattr(module, _TAP, IDLE)
    return tap
