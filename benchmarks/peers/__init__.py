"""The runs that are timed: symground's and those of its peers, a file for each suite."""
