"""Opening pictures: damage is reported, and a picture that would exhaust the memory is refused before decoding."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import IO, Any

from symground.optional import require

#: The errors of decoding a damaged image; Pillow has no single error for them.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError)
#: Megapixels of the largest picture that is decoded; Pillow warns from there on.
MAX_MEGAPIXELS = 90
_opening = threading.Lock()


def open_picture(source: str | Path | IO[bytes], max_megapixels: int = MAX_MEGAPIXELS) -> Any:
    """A picture of which only the header has been read; the caller must close it.

    Raises:
        ValueError: it has more than ``max_megapixels`` million pixels.
        OSError, SyntaxError, EOFError: it is damaged.
    """
    image = require("PIL.Image", "images")
    with _opening:  # replaces Pillow's own limit, which all threads share
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
