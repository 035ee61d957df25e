"""What the analyses find in SmolLM2-135M-Instruct, a model with learnt weights (docs/learnt.md)."""
