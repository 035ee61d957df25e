"""From a corpus to a report: what the command line runs."""

from symground.recipes.study import DemoSettings, StudySettings, analyze_study, prepare, run_study, train_study

__all__ = ["DemoSettings", "StudySettings", "analyze_study", "prepare", "run_study", "train_study"]
