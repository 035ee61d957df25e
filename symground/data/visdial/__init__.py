"""Visual Dialog: dialogues about an image as documents of a corpus, and generated images in place of photographs."""

from symground.data.visdial.dialogue_files import DialogSettings
from symground.data.visdial.documents import add_dialogues
from symground.data.visdial.image_stand_ins import stand_in_images

__all__ = [
    "DialogSettings",
    "add_dialogues",
    "stand_in_images",
]
