"""What a few tokens tell about a model: its logits head, and whether a text is read the same in every pass."""
