"""What happens within one pass: saliency and flow by a backward pass, and the residual stream at every depth."""
