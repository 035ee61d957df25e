"""Generated scenes, as text or as images: a corpus that needs no download."""

from symground.data.generated.image_scenes import GeneratedImagesSettings, Painter, add_image_scenes
from symground.data.generated.scenes import GeneratedSettings, Utterance, add_scenes, distractor, occurs

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
