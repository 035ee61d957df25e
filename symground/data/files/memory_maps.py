"""Arrays on disk that are filled after their creation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def create_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Any:
    """A new memory-mapped .npy file of this shape.

    Its disk space is allocated at once. A full disk then raises OSError here; with a sparse file it would kill the
    process when a page is written.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
