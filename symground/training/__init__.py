"""Next-token training from scratch, with many early checkpoints."""

from symground.training.config import Hardware, Optimization, TrainSettings
from symground.training.loop import train

__all__ = ["Hardware", "Optimization", "TrainSettings", "train"]
