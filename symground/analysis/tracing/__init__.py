"""Saliency and flow from one backward pass, and lenses on the residual stream at every depth."""

from symground.analysis.tracing.lens import TunedLens, lens_gain
from symground.analysis.tracing.maps import saliency_maps
from symground.analysis.tracing.memory import trace_memory
from symground.analysis.tracing.regions import saliency_by_region
from symground.analysis.tracing.trace_input import inputs_of
from symground.analysis.tracing.tracer import trace

__all__ = ["TunedLens", "inputs_of", "lens_gain", "saliency_by_region", "saliency_maps", "trace", "trace_memory"]
