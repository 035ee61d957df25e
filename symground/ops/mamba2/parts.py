"""``impl="parts"``: a Mamba-2 layer step by step, each step by the implementation that ``impl=None`` picks for it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from symground.ops.common import needs
from symground.ops.common.dispatch import choose
from symground.ops.mamba2 import causal_conv1d as causal_conv1d_package
from symground.ops.mamba2 import cpu, reference
from symground.ops.mamba2.layer import Layer, by_parts
from symground.ops.ssd.api import IMPLEMENTATIONS as SCANS

refuses = needs.nothing

#: The implementations of the convolution before its reference, in the order in which ``impl=None`` tries them.
CONVOLUTIONS = {"cpu": cpu, "causal_conv1d": causal_conv1d_package}


def _convolve(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    y: Tensor = choose("causal_conv1d", {**CONVOLUTIONS, "reference": reference}, None, x, weight)(x, weight, *rest)
    return y


def _mix(scan: Any, *rest: Any) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = choose("ssd", SCANS, None, scan.x)(scan, *rest)
    return found


def mamba2_inner(layer: Layer) -> Tensor:
    return by_parts(layer, _convolve, _mix)
