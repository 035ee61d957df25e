"""The goals: the suites are run, judged, shown and drawn."""
