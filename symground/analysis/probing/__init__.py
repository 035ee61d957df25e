"""What a model is asked: sentence probes and questions about images, as token ids, and what it answers to them."""
