"""What the study asks of a model: probes and their surprisal, saliency, heads, and what silencing them does."""

from symground.analysis.ablate import ablate
from symground.analysis.contexts import Context
from symground.analysis.cooccurrence import cooccurrence
from symground.analysis.gain import gain, gain_interval
from symground.analysis.heads import find_heads, head_shares
from symground.analysis.intervene import intervene
from symground.analysis.probes import Probes, probes, split_contexts
from symground.analysis.r2 import cooccurrence_r2
from symground.analysis.score import score, score_to_parquet
from symground.analysis.sweep import sweep_heads
from symground.analysis.trace import saliency_by_region, trace

__all__ = [
    "Context",
    "Probes",
    "ablate",
    "cooccurrence",
    "cooccurrence_r2",
    "find_heads",
    "gain",
    "gain_interval",
    "head_shares",
    "intervene",
    "probes",
    "saliency_by_region",
    "score",
    "score_to_parquet",
    "split_contexts",
    "sweep_heads",
    "trace",
]
