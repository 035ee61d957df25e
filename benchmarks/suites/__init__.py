"""Suites of pytest-benchmark, one for each thing that is timed beside its peers."""
