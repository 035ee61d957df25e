"""Generated scenes, as text or as images: a corpus that needs no download."""

from symground.data.scenes.image_scenes import GeneratedImagesSettings, Painter, add_image_scenes
from symground.data.scenes.word_scenes import GeneratedSettings, Utterance, add_scenes, distractor, occurs

__all__ = [
    "GeneratedImagesSettings",
    "GeneratedSettings",
    "Painter",
    "Utterance",
    "add_image_scenes",
    "add_scenes",
    "distractor",
    "occurs",
]
