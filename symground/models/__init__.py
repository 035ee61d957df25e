"""Modules that show their heads: presets, loading, and making a model traceable."""

from symground.models.architectures import register, set_images
from symground.models.attachment import attach, detach, mixers
from symground.models.hooks import Mixer, Tap
from symground.models.loading import PRESETS, create, load, load_processor, load_tokenizer, parameter_count
from symground.models.trials import Readout, readout

register()  # so that a model can be loaded with attn_implementation="symground" too

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
]
