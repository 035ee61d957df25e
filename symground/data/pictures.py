"""Opening pictures: what is damaged is said, and what would fill the memory is refused before it is decoded."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import IO, Any

from symground.optional import require

#: What decoding a damaged image raises: Pillow has no error of its own for all of it.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError)
#: Millions of points of the largest picture that is decoded; Pillow warns from there.
MAX_MEGAPIXELS = 90
_opening = threading.Lock()


def open_picture(source: str | Path | IO[bytes], max_megapixels: int = MAX_MEGAPIXELS) -> Any:
    """A picture of which the header alone is read; to be closed.

    Raises:
        ValueError: it has more than ``max_megapixels`` million points.
        OSError, SyntaxError, EOFError: it is damaged.
    """
    image = require("PIL.Image", "images")
    with _opening:  # Pillow's own limit, which is one for all threads, makes way for ours
        before, image.MAX_IMAGE_PIXELS = image.MAX_IMAGE_PIXELS, None
        try:
            opened = image.open(source)
        finally:
            image.MAX_IMAGE_PIXELS = before
    width, height = opened.size
    if width * height > max_megapixels * 1_000_000:
        opened.close()
        raise ValueError(
            f"{width:,} × {height:,} points are more than the limit of {max_megapixels} million (max_megapixels)"
        )
    return opened
