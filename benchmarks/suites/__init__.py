"""Suites of pytest-benchmark, one for each subject that is timed beside its peers."""
