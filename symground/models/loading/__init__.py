"""Models of named sizes, and models loaded from folders and from the hub."""

from symground.models.loading.presets import PRESETS, create, parameter_count
from symground.models.loading.pretrained import load, load_processor, load_tokenizer, told_encoder_decoder, told_heads

__all__ = [
    "PRESETS",
    "create",
    "load",
    "load_processor",
    "load_tokenizer",
    "parameter_count",
    "told_encoder_decoder",
    "told_heads",
]
