"""Attention weights of whatever forward passes happen in a block."""

from symground.analysis.reading.observing.block import Observation, observe

__all__ = ["Observation", "observe"]
