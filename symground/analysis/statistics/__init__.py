"""Intervals, tests, mixed models and curves, computed from tables of scores and gains; no language model is run."""

from symground.analysis.statistics.cooccurrence_counts import cooccurrence
from symground.analysis.statistics.curves import over_training
from symground.analysis.statistics.emergence_step import LEARNT, emergence
from symground.analysis.statistics.information_gain import gain, gain_by_context, gain_interval
from symground.analysis.statistics.intervals import bootstrap_interval, cohens_d, holm, paired, resampled
from symground.analysis.statistics.mixed_models import mixed_effects
from symground.analysis.statistics.r2 import cooccurrence_r2, peak

__all__ = [
    "LEARNT",
    "bootstrap_interval",
    "cohens_d",
    "cooccurrence",
    "cooccurrence_r2",
    "emergence",
    "gain",
    "gain_by_context",
    "gain_interval",
    "holm",
    "mixed_effects",
    "over_training",
    "paired",
    "peak",
    "resampled",
]
