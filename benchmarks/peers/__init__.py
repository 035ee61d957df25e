"""What is timed: ours and every peer of it, one file for each suite."""
