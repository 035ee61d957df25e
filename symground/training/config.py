"""The settings of training: what the command line offers, what config.json records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from symground.models import PRESETS
from symground.training.schedule import DECAYS, checkpoint_schedule
from symground.typed import check_types

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Optimization:
    """How a model is trained, whichever it is."""

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
    """How the rate falls after it to a tenth of its peak: "cosine", "linear", or not at all ("constant")."""
    weight_decay: float = 0.01
    """AdamW's, on matrices only."""
    beta2: float = 0.99
    """AdamW's second-moment decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    precision: str = "float32"
    """"float32", or "bfloat16": products in it by autocast, weights and their updates in float32."""
    checkpoints: str = "0,25,50,75,100,every 50"
    """Steps at which to save: numbers, 'every N', and '…' between two numbers for doubling. The last step always is."""

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
            raise ValueError(f"length: expected at least 2 (a row holds its own targets), got {self.length}")
        for name, known in (("decay", DECAYS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}; got {getattr(self, name)!r}")
        checkpoint_schedule(self.checkpoints, self.steps)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.length

    def of_model(self, model: str, learning_rates: Mapping[str, float]) -> Optimization:
        """These settings at the peak rate of ``model``'s family; ``learning_rates``: by the preset's beginning."""
        rates = [rate for family, rate in learning_rates.items() if model.startswith(family)]
        return replace(self, learning_rate=rates[0]) if rates else self


@dataclass(frozen=True)
class TrainSettings(Optimization):
    """One run. The same settings on the same corpus give the same weights."""

    model: str = "gpt2-4l"
    """Preset of the architecture and its size."""
    seed: int = 0
    """Of the initial weights and of the order of the rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_types(self, TrainSettings)
        if self.model not in PRESETS:
            raise ValueError(f"model: expected one of {', '.join(PRESETS)}; got {self.model!r}")


@dataclass(frozen=True)
class Hardware:
    """On what a run is trained, and what it tells: no part of what makes it this run."""

    device: str | None = None
    """"cpu", "cuda"; a GPU where there is one by default, and under torchrun one for each process."""
    accumulate: int = 1
    """Parts that each process takes its rows in, one after the other, where all at once do not fit."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at first, faster steps then."""
    deterministic: bool = False
    """Only algorithms that give the same bits again on the same GPU; on a CPU they do anyway."""
    resume_every: float = 120.0
    """Seconds after which the state is saved again that a killed run goes on from. One asked to end saves it too."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, into RUN/tensorboard."""

    def __post_init__(self) -> None:
        check_types(self, Hardware)
        for name, low in (("accumulate", 1), ("resume_every", 0)):
            if not getattr(self, name) >= low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}")
