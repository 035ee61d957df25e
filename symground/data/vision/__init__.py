"""Photographs as models read them: decoding, features of patches, and the prompt of a vision-language model."""

from symground.data.vision.decoding import MAX_MEGAPIXELS, read_image
from symground.data.vision.features import Features, FeatureSettings, extract_features
from symground.data.vision.patch_grids import PatchMap, on_image
from symground.data.vision.prompts import PARTS, Prompt, processed, prompt_text, read_prompt

__all__ = [
    "MAX_MEGAPIXELS",
    "PARTS",
    "FeatureSettings",
    "Features",
    "PatchMap",
    "Prompt",
    "extract_features",
    "on_image",
    "processed",
    "prompt_text",
    "read_image",
    "read_prompt",
]
