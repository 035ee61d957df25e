"""What the study asks of a model: probes and their surprisal, saliency, heads, and what silencing them does."""

from symground.analysis.ablate import ablate, steer
from symground.analysis.answers import answers, pope_scores
from symground.analysis.contexts import Context
from symground.analysis.cooccurrence import cooccurrence
from symground.analysis.curves import over_training
from symground.analysis.emergence import emergence
from symground.analysis.gain import gain, gain_by_context, gain_interval
from symground.analysis.heads import find_heads, head_shares
from symground.analysis.intervene import intervene
from symground.analysis.lens import TunedLens, lens_gain
from symground.analysis.memory import trace_memory
from symground.analysis.mixed import mixed_effects
from symground.analysis.monitor import monitor
from symground.analysis.null import share_table
from symground.analysis.probes import Probes, probes, split_contexts
from symground.analysis.questions import ImageQuestions, image_questions
from symground.analysis.r2 import cooccurrence_r2
from symground.analysis.score import score, score_to_parquet
from symground.analysis.stability import stability
from symground.analysis.steering import steering
from symground.analysis.sweep import sweep_heads
from symground.analysis.trace import saliency_by_region, trace

__all__ = [
    "Context",
    "ImageQuestions",
    "Probes",
    "TunedLens",
    "ablate",
    "answers",
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
