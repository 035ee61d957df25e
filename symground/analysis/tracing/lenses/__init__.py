"""What a model would say at every depth: its residual stream, read by a tuned or a plain lens."""

from symground.analysis.tracing.lenses.tuned_lens import TunedLens, lens_gain, lens_read

__all__ = ["TunedLens", "lens_gain", "lens_read"]
