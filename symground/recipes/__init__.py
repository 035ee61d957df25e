"""From a corpus to a report: what the command line runs."""

from symground.recipes.prepare import CorpusSettings, prepare
from symground.recipes.study import DemoSettings, StudySettings, analyze_study, run_study, train_study

__all__ = [
    "CorpusSettings", "DemoSettings", "StudySettings", "analyze_study", "prepare", "run_study", "train_study",
]  # fmt: skip
