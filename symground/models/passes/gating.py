"""Passes with heads gated: their outputs are multiplied, or replaced, before the output projection."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from torch import Tensor
from transformers import PreTrainedModel

from symground.models.attachment import mixers
from symground.models.hooks import Replacement, Tap, tapped
from symground.models.trials import readout


def gated(
    model: PreTrainedModel,
    gates: Mapping[int, Tensor],
    fills: Mapping[int, Tensor] | None = None,
    positions: Tensor | None = None,
) -> AbstractContextManager[None]:
    """A block in whose passes each head's output is gate · output + (1 - gate) · fill, before the output projection.

    Args:
        model: attached.
        gates: layer → [H] or [B,H]; layers without are left alone.
        fills: layer → [H,D] or [B,T,H,D]; None is 0.
        positions: [T] or [B,T] bool: where; None is everywhere.
    """
    device = readout(model).weight.device
    taps = {}
    for mixer in mixers(model):
        gate = gates.get(mixer.layer)
        if gate is None or bool((gate == 1).all()):
            continue  # nothing to silence: the layer keeps its fastest path
        gate = gate.to(device)
        if fills is None and positions is None:
            taps[mixer] = Tap(gate=gate)
        else:
            fill = None if fills is None else fills[mixer.layer]
            where = None if positions is None else positions.to(device)
            taps[mixer] = Tap(replaced=(Replacement(gate, fill, where),))
    return tapped(taps)
