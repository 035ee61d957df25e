"""What a forward pass is asked and what it shows: taps of mixers, and hooks that one thread alone sees."""
