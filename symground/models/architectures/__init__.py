"""Parts of models that are ours: the attention, Mamba-2's mixer, the LSTM, image tokens, GELU as one operation."""
