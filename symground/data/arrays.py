"""Arrays on disk that are filled in place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def create(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Any:
    """A new memory-mapped .npy file of this shape.

    Its room is taken at once: a full disk is an OSError here, where it would kill the process when a page of a file
    with holes is written.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
