"""Saliency and flow from one backward pass, and lenses on the residual stream at every depth."""

from symground.analysis.tracing.collected import coordinates_of, most_heads
from symground.analysis.tracing.lenses import TunedLens, lens_gain, lens_read
from symground.analysis.tracing.maps import saliency_maps
from symground.analysis.tracing.memory import trace_memory
from symground.analysis.tracing.named_inputs import count_of, inputs_by_name, learn_layouts, run_on, sizes_of
from symground.analysis.tracing.patches import check_pictures, patch_places
from symground.analysis.tracing.regions import saliency_by_region
from symground.analysis.tracing.sides import PREFIXES, Sides, Variables, names_of, prefix_of
from symground.analysis.tracing.trace_input import (
    PREDICTION,
    check_alone,
    check_one_of,
    check_unreserved,
    checked_mask,
    group_ids,
    image_group,
    inputs_of,
    last_of,
    masks_of,
    wanted_of,
    warn_without_pictures,
    with_prediction,
)
from symground.analysis.tracing.tracer import trace

__all__ = [
    "PREDICTION", "PREFIXES", "Sides", "TunedLens", "Variables", "check_alone", "check_one_of", "check_pictures",
    "check_unreserved", "checked_mask", "coordinates_of", "count_of", "group_ids", "image_group", "inputs_by_name",
    "inputs_of", "last_of", "learn_layouts", "lens_gain", "lens_read", "masks_of", "most_heads", "names_of",
    "patch_places", "prefix_of", "run_on", "saliency_by_region", "saliency_maps", "sizes_of", "trace",
    "trace_memory", "wanted_of", "warn_without_pictures", "with_prediction",
]  # fmt: skip
