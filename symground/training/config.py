"""The settings of training, for the command line and config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from symground.errors import check_types
from symground.models import PRESETS
from symground.training.schedule import DECAYS, checkpoint_schedule

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Optimization:
    """Settings of training for any model."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 16
    """Rows per step, over all processes."""
    length: int = 64
    """Tokens per row."""
    learning_rate: float = 1e-3
    """Peak of AdamW's learning rate."""
    warmup: int = 50
    """Steps of linear warm-up."""
    decay: str = "cosine"
    """How the rate falls after warm-up to a tenth of its peak: "cosine" or "linear"; "constant" does not fall."""
    weight_decay: float = 0.01
    """AdamW's weight decay, on matrices only."""
    beta2: float = 0.99
    """AdamW's second-moment decay."""
    clip: float = 1.0
    """Gradients with a larger norm are clipped to this norm."""
    precision: str = "float32"
    """Precision: "float32", or "bfloat16" by autocast, with weights and their updates in float32."""
    checkpoints: str = "0,25,50,75,100,every 50"
    """Steps to save: numbers, 'every N', and '…' between two numbers for doubling; the last step is always saved."""

    def __post_init__(self) -> None:
        check_types(self, Optimization)
        for name in ("steps", "batch_size", "length", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        for name, most in (("learning_rate", math.inf), ("weight_decay", math.inf), ("beta2", 1)):
            if not 0 <= getattr(self, name) < most:
                raise ValueError(f"{name}: expected a number from 0 to below {most}, got {getattr(self, name)}")
        if self.warmup < 0:
            raise ValueError(f"warmup: expected at least 0, got {self.warmup}")
        if self.length < 2:
            raise ValueError(f"length: expected at least 2 (a row contains its own targets), got {self.length}")
        for name, known in (("decay", DECAYS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}; got {getattr(self, name)!r}")
        checkpoint_schedule(self.checkpoints, self.steps)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.length

    def of_model(self, model: str, learning_rates: Mapping[str, float]) -> Optimization:
        """These settings with the peak rate of ``model``'s family, from ``learning_rates``: preset prefix → rate."""
        rates = [rate for family, rate in learning_rates.items() if model.startswith(family)]
        return replace(self, learning_rate=rates[0]) if rates else self


@dataclass(frozen=True)
class TrainSettings(Optimization):
    """The settings of a run. The same settings and corpus give the same weights."""

    model: str = "gpt2-4l"
    """Preset: the architecture and its size."""
    seed: int = 0
    """Seed of the initial weights and of the order of rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_types(self, TrainSettings)
        if self.model not in PRESETS:
            raise ValueError(f"model: expected one of {', '.join(PRESETS)}; got {self.model!r}")


@dataclass(frozen=True)
class Hardware:
    """Where and how a run is trained and logged. These settings do not define the run."""

    device: str | None = None
    """"cpu" or "cuda"; default: a GPU if there is one, and under torchrun one for each process."""
    accumulate: int = 1
    """Parts into which each process splits its rows of a step, if they do not fit in memory at once."""
    compile: bool = False
    """Compile the model with torch.compile: it takes minutes at first, then steps are faster."""
    deterministic: bool = False
    """Use only algorithms that give the same bits again on the same GPU; on a CPU they always do."""
    resume_every: float = 120.0
    """Seconds between saves of the state from which a killed run resumes; a stopped run saves it too."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, to RUN/tensorboard."""

    def __post_init__(self) -> None:
        check_types(self, Hardware)
        for name, low in (("accumulate", 1), ("resume_every", 0)):
            if not getattr(self, name) >= low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}")
