"""The studies and comparisons that the command line runs, from a corpus to a report."""

from symground.recipes.prepare import CorpusSettings, prepare
from symground.recipes.study import DemoSettings, StudySettings, analyze_study, run_study, train_study

__all__ = [
    "CorpusSettings", "DemoSettings", "StudySettings", "analyze_study", "prepare", "run_study", "train_study",
]  # fmt: skip
