"""Saliency and flow from one backward pass, and lenses on the residual stream at every depth."""

from symground.analysis.tracing.backward import coordinates_of, most_heads
from symground.analysis.tracing.lens import TunedLens, lens_gain
from symground.analysis.tracing.maps import saliency_maps
from symground.analysis.tracing.memory import trace_memory
from symground.analysis.tracing.regions import saliency_by_region
from symground.analysis.tracing.trace_input import (
    PREDICTION,
    check_unreserved,
    checked_mask,
    group_ids,
    image_group,
    inputs_of,
    last_of,
    masks_of,
    warn_without_pictures,
    with_prediction,
)
from symground.analysis.tracing.tracer import trace

__all__ = [
    "PREDICTION", "TunedLens", "check_unreserved", "checked_mask", "coordinates_of", "group_ids", "image_group",
    "inputs_of", "last_of", "lens_gain", "masks_of", "most_heads", "saliency_by_region", "saliency_maps", "trace",
    "trace_memory", "warn_without_pictures", "with_prediction",
]  # fmt: skip
