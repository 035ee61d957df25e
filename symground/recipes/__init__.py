"""From a corpus to a report: what the command line runs."""

from symground.recipes.study import StudySettings, analyze_study, demo_settings, prepare, run_study, train_study

__all__ = ["StudySettings", "analyze_study", "demo_settings", "prepare", "run_study", "train_study"]
