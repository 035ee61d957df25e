"""Modules that show their heads: presets, loading, and making a model traceable."""

from symground.models.attach import attach, detach, mixers
from symground.models.images import set_images
from symground.models.interface import register
from symground.models.load import load, load_processor, load_tokenizer
from symground.models.mixers import Mixer, Tap
from symground.models.presets import PRESETS, create, parameter_count
from symground.models.readout import Readout, readout

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
