"""Forward passes of other kinds: from a KV cache, from the middle, layer by layer, with less memory."""
