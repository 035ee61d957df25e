"""A question, a picture, and processors of LLaVA's form, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import transformers
from PIL import Image

TEXT = "Is there a zebra in the image?"
SYSTEM = "You are a helpful assistant. "


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def llava_with(
    processor: Any, tokenizer: Any = None, template: str | None = None, **more: Any
) -> transformers.LlavaProcessor:
    """The LLaVA processor with another tokenizer or template."""
    settings = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1, **more}
    return transformers.LlavaProcessor(
        processor.image_processor, tokenizer or processor.tokenizer, patch_size=4,
        chat_template=template or processor.chat_template, **settings,
    )  # fmt: skip
