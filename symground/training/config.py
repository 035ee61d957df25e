"""The settings of training, for the command line and config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from symground.errors import check_types, choice, integer, number
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
        check_types(self)
        for name, least in (("steps", 1), ("batch_size", 1), ("length", 2), ("warmup", 0)):
            integer(name, getattr(self, name), least)  # a row of 2 tokens has one target
        for name, within in (
            ("learning_rate", "(0, inf)"), ("clip", "(0, inf]"), ("weight_decay", "[0, inf)"), ("beta2", "[0, 1)"),
        ):  # fmt: skip
            number(name, getattr(self, name), within)
        choice("decay", self.decay, DECAYS)
        choice("precision", self.precision, PRECISIONS)
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
        choice("model", self.model, PRESETS)
        integer("seed", self.seed, 0)


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
        check_types(self)
        integer("accumulate", self.accumulate, 1)
        number("resume_every", self.resume_every, "[0, inf]")
