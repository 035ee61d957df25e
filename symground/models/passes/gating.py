"""Passes in which the outputs of heads are scaled or replaced before the output projection."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from torch import Tensor
from transformers import PreTrainedModel

from symground.models.attachment import mixers
from symground.models.hooks import Replacement, Tap, device_of, tapped


def gated(
    model: PreTrainedModel,
    gates: Mapping[int, Tensor],
    fills: Mapping[int, Tensor] | None = None,
    positions: Tensor | None = None,
) -> AbstractContextManager[None]:
    """Within the block each head's output is gate · output + (1 - gate) · fill, before the output projection.

    Args:
        model: attached.
        gates: layer → [H] or [B,H]; layers without a gate are unchanged.
        fills: layer → [H,D] or [B,T,H,D]; None is 0.
        positions: [T] or [B,T] bool, True at the positions that are gated; None is all.
    """
    device = device_of(model)
    taps = {}
    for mixer in mixers(model, vision=True):
        gate = gates.get(mixer.layer)
        if gate is None or bool((gate == 1).all()):
            continue  # no head is silenced, so the layer keeps its fastest implementation
        gate = gate.to(device)
        if fills is None and positions is None:
            taps[mixer] = Tap(gate=gate)
        else:
            if fills is not None and mixer.layer not in fills:
                raise ValueError(
                    f"mode: the heads of layer {mixer.layer}, of a vision tower, are silenced by 'zero' only"
                )
            fill = None if fills is None else fills[mixer.layer]
            where = None if positions is None else positions.to(device)
            taps[mixer] = Tap(replaced=(Replacement(gate, fill, where),))
    return tapped(taps)
