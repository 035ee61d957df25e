"""Modules that show their heads: presets, loading, and making a model traceable."""

from symground.models.architectures.attention import register
from symground.models.architectures.image_tokens import set_images
from symground.models.attachment.attaching import attach, detach
from symground.models.attachment.lookup import mixers
from symground.models.hooks.mixers import Mixer, Tap
from symground.models.loading.presets import PRESETS, create, parameter_count
from symground.models.loading.pretrained import load, load_processor, load_tokenizer
from symground.models.trials.output_head import Readout, readout

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
