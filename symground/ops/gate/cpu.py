"""The ``cpu`` implementation of gated heads."""

from symground.ops.common import needs
from symground.ops.gate.registered import gate_heads

__all__ = ["gate_heads", "refuses"]

refuses = needs.cpu
