"""Opening pictures: damage is reported, and a picture that would exhaust the memory is refused before decoding."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import IO, Any

from symground.errors import require

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


def read_image(path: str | Path, max_megapixels: int = MAX_MEGAPIXELS) -> Any:
    """A picture in RGB, rotated upright as its metadata say.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it cannot be read, or has more than ``max_megapixels`` million pixels (names the file).
    """
    operations = require("PIL.ImageOps", "images")
    if not Path(path).is_file():
        raise FileNotFoundError(f"image: {path} does not exist")
    try:
        with open_picture(path, max_megapixels) as opened:
            return operations.exif_transpose(opened).convert("RGB")
    except DAMAGE as error:
        raise ValueError(f"image: {path} cannot be read ({error})") from error
