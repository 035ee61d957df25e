"""The analyses of the study: probes and their surprisal, saliency, heads, and the effect of silencing them."""

from symground.analysis.causal import ablate, intervene, steer, steering, sweep_heads
from symground.analysis.heads import find_heads, head_shares, monitor, share_table, stability
from symground.analysis.probing import (
    Context,
    ImageQuestions,
    Probes,
    answers,
    image_questions,
    pope_scores,
    probes,
    score,
    score_to_parquet,
    split_contexts,
)
from symground.analysis.reading import Observation, attention, attention_memory, observe
from symground.analysis.statistics import (
    cooccurrence,
    cooccurrence_r2,
    emergence,
    gain,
    gain_by_context,
    gain_interval,
    mixed_effects,
    over_training,
)
from symground.analysis.tracing import TunedLens, lens_gain, saliency_by_region, trace, trace_memory

__all__ = [
    "Context",
    "ImageQuestions",
    "Observation",
    "Probes",
    "TunedLens",
    "ablate",
    "answers",
    "attention",
    "attention_memory",
    "cooccurrence",
    "cooccurrence_r2",
    "emergence",
    "find_heads",
    "gain",
    "gain_by_context",
    "gain_interval",
    "head_shares",
    "image_questions",
    "intervene",
    "lens_gain",
    "mixed_effects",
    "monitor",
    "observe",
    "over_training",
    "pope_scores",
    "probes",
    "saliency_by_region",
    "score",
    "score_to_parquet",
    "share_table",
    "split_contexts",
    "stability",
    "steer",
    "steering",
    "sweep_heads",
    "trace",
    "trace_memory",
]
