"""All analyses of one model, saved as tables: of a run's checkpoints, or of a pretrained model."""

from symground.analysis.run.analyses import Subject
from symground.analysis.run.checkpoints import analyze, checkpoints_of
from symground.analysis.run.costs import estimated
from symground.analysis.run.measuring import measure
from symground.analysis.run.settings import ANALYSES, AnalysisSettings, MeasureSettings

__all__ = [
    "ANALYSES",
    "AnalysisSettings",
    "MeasureSettings",
    "Subject",
    "analyze",
    "checkpoints_of",
    "estimated",
    "measure",
]
