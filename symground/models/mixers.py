"""Mixers with heads: what the analyses see of a layer, whatever the architecture.

A mixer is a module that mixes positions with one matrix per head. What an analysis asks of it (probes, gates) is laid
on the module as a `Tap`, which the mixer's forward reads; nothing else of the model is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from symground import ops
from symground.models.rows import RowProbe

_TAP = "_symground_tap"


@dataclass(frozen=True)
class Replacement:
    """Heads whose outputs are replaced after the mixing: gate · output + (1 - gate) · fill."""

    gate: Tensor
    """[H] or [B,H]"""
    fill: Tensor | None = None
    """Broadcasts to [B,T,H,D]; None is 0."""
    positions: Tensor | None = None
    """[T] or [B,T] bool: where; None is everywhere."""

    def of(self, x: Tensor) -> Tensor:
        """x [B,T,H,D] with the heads replaced."""
        # A model may be spread over devices.
        gate, fill = self.gate.to(x.device), None if self.fill is None else self.fill.to(x.device)
        replaced = ops.gate_heads(x, gate, fill)
        if self.positions is None:
            return replaced
        if self.positions.shape not in (x.shape[:2], x.shape[1:2]):
            raise ValueError(
                f"positions: expected shape [B,T] = {list(x.shape[:2])} or [T], got {list(self.positions.shape)}"
            )
        return torch.where(self.positions.to(x.device)[..., None, None], replaced, x)


@dataclass(frozen=True)
class Tap:
    """What is asked of one mixer in the next forward passes; see :func:`symground.ops.attention` for the shapes."""

    gate: Tensor | None = None
    saliency_probe: Tensor | None = None
    flow_probe: Tensor | None = None
    query_groups: Tensor | None = None
    key_groups: Tensor | None = None
    replaced: tuple[Replacement, ...] = ()
    """Applied one after the other, after the gate."""
    rows: RowProbe | None = None
    mix: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None
    """(q, k, v [B,H or Hk,T,D], scale) → the heads' outputs [B,H,T,D], in place of the attention (attention only)."""
    observe: Callable[[Tensor], None] | None = None
    """Sees the heads' outputs [B,T,H,D] as the output projection, or Mamba-2's gated norm, gets them."""

    @property
    def plain(self) -> bool:
        """Whether any attention will do: nothing is asked of the mixing itself."""
        return self.gate is None and self.saliency_probe is None and self.flow_probe is None

    @property
    def idle(self) -> bool:
        return self.plain and not self.replaced and all(x is None for x in (self.rows, self.mix, self.observe))


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
    def tapped(self, **changes: Any) -> Iterator[None]:
        """Change the mixer's tap within the block; what was there before comes back, also after an exception."""
        before = self.tap
        setattr(self.module, _TAP, replace(before, **changes))
        try:
            yield
        finally:
            setattr(self.module, _TAP, before)


def check_batch(tap: Tap, examples: int) -> None:
    """Refuse a pass of another number of examples than those that the gates are for."""
    for gate in (tap.gate, *(replacement.gate for replacement in tap.replaced)):
        if gate is not None and gate.ndim == 2 and len(gate) != examples:
            raise ValueError(f"heads: silenced in {len(gate)} examples each its own, this pass has {examples} examples")


def shown(tap: Tap, heads: Tensor) -> Tensor:
    """Outputs of the heads [B,T,H,D] as the tap wants them to go on, and seen by it; its ``gate`` is not applied."""
    for replacement in tap.replaced:
        heads = replacement.of(heads)
    if tap.observe is not None:
        tap.observe(heads)
    return heads


def tap_of(module: nn.Module) -> Tap:
    tap: Tap = getattr(module, _TAP, IDLE)
    return tap


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes, also where its weights are brought from elsewhere for each pass (accelerate)."""
    for parameter in module.parameters():
        if not parameter.is_meta:
            return parameter.device
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return torch.device("cpu")


@contextmanager
def untapped(model: nn.Module) -> Iterator[None]:
    """Within the block nothing is asked of any mixer: how a model is tried out, whatever is asked of it meanwhile."""
    before = {module: tap_of(module) for module in model.modules() if _TAP in vars(module)}
    try:
        for module in before:
            setattr(module, _TAP, IDLE)
        yield
    finally:
        for module, tap in before.items():
            setattr(module, _TAP, tap)


@contextmanager
def head_outputs(layers: tuple[Mixer, ...]) -> Iterator[dict[int, Tensor]]:
    """A dictionary that the forward pass within the block fills: layer → outputs of its heads [B,T,H,D]."""
    found: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for mixer in layers:
            stack.enter_context(mixer.tapped(observe=lambda x, layer=mixer.layer: found.__setitem__(layer, x)))
        yield found
