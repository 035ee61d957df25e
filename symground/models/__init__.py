"""Models whose heads can be traced: presets, loading, and attaching."""

from symground.models.architectures import register, set_images
from symground.models.attachment import attach, detach, mixers
from symground.models.hooks import Mixer, Tap
from symground.models.loading import (
    PRESETS,
    create,
    load,
    load_processor,
    load_tokenizer,
    parameter_count,
    told_encoder_decoder,
    told_heads,
)
from symground.models.trials import Readout, readout

register()  # a model can then also be loaded with attn_implementation="symground"

__all__ = [
    "PRESETS",
    "Mixer",
    "Readout",
    "Tap",
    "attach",
    "create",
    "detach",
    "load",
    "load_processor",
    "load_tokenizer",
    "mixers",
    "parameter_count",
    "readout",
    "set_images",
    "told_encoder_decoder",
    "told_heads",
]
