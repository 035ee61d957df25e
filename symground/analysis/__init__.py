"""What the study asks of a model: probes and their surprisal, saliency, heads, and what silencing them does."""

from symground.analysis.causal.ablation import ablate
from symground.analysis.causal.head_steering import steer, steering
from symground.analysis.causal.head_sweep import sweep_heads
from symground.analysis.causal.intervention import intervene
from symground.analysis.heads.agreement import stability
from symground.analysis.heads.finding import find_heads, head_shares
from symground.analysis.heads.monitoring import monitor
from symground.analysis.heads.null_shares import share_table
from symground.analysis.probing.answering import answers, pope_scores
from symground.analysis.probing.contexts import Context
from symground.analysis.probing.questions import ImageQuestions, image_questions
from symground.analysis.probing.scoring import score, score_to_parquet
from symground.analysis.probing.sentence_probes import Probes, probes, split_contexts
from symground.analysis.statistics.cooccurrence_counts import cooccurrence
from symground.analysis.statistics.curves import over_training
from symground.analysis.statistics.emergence_step import emergence
from symground.analysis.statistics.information_gain import gain, gain_by_context, gain_interval
from symground.analysis.statistics.mixed_models import mixed_effects
from symground.analysis.statistics.r2 import cooccurrence_r2
from symground.analysis.tracing.lens import TunedLens, lens_gain
from symground.analysis.tracing.memory import trace_memory
from symground.analysis.tracing.regions import saliency_by_region
from symground.analysis.tracing.tracer import trace

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
