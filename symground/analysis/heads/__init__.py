"""Which heads gather and aggregate, how far that is more than chance, and what they tell beforehand."""
