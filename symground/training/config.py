"""The settings of training: what the command line offers, what config.json records."""

from __future__ import annotations

from dataclasses import dataclass

from symground.models import PRESETS
from symground.training.schedule import checkpoint_schedule


@dataclass(frozen=True)
class Optimization:
    """How a model is trained, whichever it is."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 16
    """Rows per step."""
    length: int = 64
    """Tokens per row."""
    learning_rate: float = 1e-3
    """Peak of AdamW's learning rate; it then falls along a cosine to a tenth."""
    warmup: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's, on matrices only."""
    beta2: float = 0.99
    """AdamW's second-moment decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    checkpoints: str = "0,25,50,75,100,every 50"
    """Steps at which to save: numbers, 'every N', and '…' between two numbers for doubling. The last step always is."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "length", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.length < 2:
            raise ValueError(f"length: expected at least 2 (a row holds its own targets), got {self.length}")
        checkpoint_schedule(self.checkpoints, self.steps)


@dataclass(frozen=True)
class TrainSettings(Optimization):
    """One run. The same settings on the same corpus give the same weights."""

    model: str = "gpt2-4l"
    """Preset of the architecture and its size."""
    seed: int = 0
    """Of the initial weights and of the order of the rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model not in PRESETS:
            raise ValueError(f"model: expected one of {', '.join(PRESETS)}; got {self.model!r}")
