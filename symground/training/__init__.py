"""Next-token training from scratch, with checkpoints dense early."""

from symground.training.config import Optimization, TrainSettings
from symground.training.loop import train

__all__ = ["Optimization", "TrainSettings", "train"]
