"""What heads do: they are silenced, amplified or patched, and the model is asked again."""
