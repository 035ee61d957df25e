"""The ``cuda`` implementation of gated heads: the extension's CUDA kernel."""

from symground.ops.common import needs
from symground.ops.gate.registered import gate_heads

__all__ = ["gate_heads", "refuses"]

refuses = needs.cuda_extension
