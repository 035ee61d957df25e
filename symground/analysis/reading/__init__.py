"""Reading a model's attention weights, forward only and without the matrices."""

from symground.analysis.reading.observing import Observation, observe
from symground.analysis.reading.reader import attention, attention_memory

__all__ = ["Observation", "attention", "attention_memory", "observe"]
