"""What is measured, and how."""

from __future__ import annotations

from dataclasses import dataclass

from symground.analysis.causal import MODES
from symground.analysis.heads import DENOMINATORS, INTERVENED, KINDS, POSITIONS, SELECTIONS
from symground.errors import check_types, choice, integer, number, several

#: Analysis → the tables that it fills; the last one marks it as done.
ANALYSES = {
    "surprisal": ("surprisal", "contexts", "r2", "gain"),
    "saliency": ("heads", "shares", "maps", "saliency"),
    "lens": ("lens",),
    "interventions": ("interventions",),
    "sweep": ("sweep",),
    "monitor": ("calibration", "steering", "monitor"),
}


@dataclass(frozen=True)
class MeasureSettings:
    """What is measured of a model."""

    what: tuple[str, ...] = tuple(ANALYSES)
    """"surprisal" (tables surprisal, contexts, gain, and r2 if there is a training corpus), "saliency" (saliency,
    heads, shares, maps), "lens", "interventions", "sweep", "monitor" (monitor, calibration, steering; it needs two
    contexts)."""
    threshold: float = 0.30
    """Smallest share of flow of an aggregate or gather head."""
    draws: int = 100
    """Random control draws per intervention."""
    spans: tuple[int, ...] = (0, 1)
    """Numbers of tokens after the ENV noun that interventions count as the noun; each has its own table rows."""
    lens_fit: int = 100
    """Steps of Adam to fit a lens."""
    map_nouns: int = 8
    """Number of nouns whose single examples are kept for the report's saliency maps."""
    map_contexts: int = 2
    """Number of contexts of these examples."""
    intervene_contexts: int | None = None
    """Number of contexts, from the first, for interventions, the sweep and steering; all by default."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Heads to silence: "aggregate", "gather", or "both" together."""
    denominators: tuple[str, ...] = tuple(DENOMINATORS)
    """What a silenced head's share of flow is a share of: its "row" at the prediction or noun position, or its whole
    "matrix"; each value has its own table rows."""
    selection: tuple[str, ...] = ("example",)
    """Silence the heads found in the "example" itself, or "held-out" ones found in the other half of the contexts; each
    value has its own table rows."""
    positions: tuple[str, ...] = ("all",)
    """Silence heads at "all" positions, or at the position of their kind ("own"); each value has its own table rows."""
    mode: tuple[str, ...] = ("zero",)
    """Replacement for a silenced head: "zero", "mean" or "resample"; each value has its own table rows, and the sweep
    takes the first."""
    match: tuple[str, ...] = ("none",)
    """Control heads from all layers ("none"), from the same "layer", or with an output of about the same "norm"; each
    value has its own table rows."""
    again: bool = False
    """Repeat analyses that the tables already have (after a change of these settings, for example)."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in self.what:
            choice("what", name, ANALYSES)
        if not self.spans:
            raise ValueError("spans: expected at least one number, got none")
        for value in self.spans:
            integer("spans", value, 0)
        for name, known in (
            ("selection", SELECTIONS), ("kinds", INTERVENED), ("denominators", DENOMINATORS), ("positions", POSITIONS),
            ("mode", MODES), ("match", ("none", "layer", "norm")),
        ):  # fmt: skip
            several(name, getattr(self, name), known)
        for name in ("draws", "lens_fit", "map_nouns", "map_contexts", "intervene_contexts"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1)
        number("threshold", self.threshold, "(0, 1]")


@dataclass(frozen=True)
class AnalysisSettings(MeasureSettings):
    """What is measured at the checkpoints of a run."""

    window: int = 512
    """Largest distance of a co-occurrence in tokens."""
    saliency_steps: tuple[int, ...] = ()
    """Checkpoints at which saliency and heads are measured; all by default."""
    lens_steps: tuple[int, ...] = ()
    """Checkpoints at which the tuned lens is fitted; by default five, evenly spread, with the last one."""
    intervene_steps: tuple[int, ...] = ()
    """Checkpoints at which to intervene, sweep and monitor; the last by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("window", self.window, 1)
        for name in ("saliency_steps", "lens_steps", "intervene_steps"):
            for value in getattr(self, name):
                integer(name, value, 0)
