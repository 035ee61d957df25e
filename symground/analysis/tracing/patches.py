"""Where the patches that a vision tower mixes lie in its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from symground.models.architectures import places_in_grids


def patch_places(tower: Any, grids: Sequence[Tensor], sizes: tuple[int, int, int]) -> dict[str, Any]:
    """Coordinates patch_row and patch_column; -1 for a class token, for padding and where unknown.

    A tower that was given a grid of patches for each picture has them for each example and image, and patch_frame of a
    video. ``sizes`` are the numbers of examples, of pictures of each, and of patches.
    """
    if grids:
        found = places_in_grids(tower, grids[0], sizes[2]).reshape(*sizes, 3)
        dims = "example", "image", "patch"
        return {f"patch_{name}": (dims, found[..., n]) for n, name in enumerate(("frame", "row", "column"))}
    row, column = _in_square(tower, sizes[2])
    return {"patch_row": ("patch", row), "patch_column": ("patch", column)}


def check_pictures(places: Mapping[str, Tensor], grids: Sequence[Tensor], times: int) -> None:
    """Refuse examples with other numbers of pictures than ``times``, by the placeholders of their patches.

    A tower reads the pictures of all examples in one row, from which it does not show whose they are.
    """
    if not places:
        return
    tokens = places["image"].sum(1).tolist()
    wanted = [max(tokens)] * len(tokens)
    if grids:
        patches = grids[0].prod(-1).view(-1, times).sum(1).tolist()
        wanted = [round(sum(tokens) * n / sum(patches)) for n in patches]
    if tokens != wanted:
        raise ValueError(
            "input_ids: expected the same number of pictures in each example, since a vision tower does not show whose "
            f"they are; got {tokens} placeholders, where {times} pictures each would have {wanted}"
        )


def _in_square(tower: Any, patches: int) -> tuple[Any, Any]:
    """Row and column of each patch in the square picture that a tower reads, after its class token."""
    sizes = [getattr(tower.config, name, None) for name in ("image_size", "patch_size")]
    size, patch = (x[0] if isinstance(x, (list, tuple)) else x for x in sizes)
    side = size // patch if isinstance(size, int) and isinstance(patch, int) else 0
    leading = patches - side * side
    at = np.arange(patches) - leading
    known = (at >= 0) & (leading in (0, 1, 1 + (getattr(tower.config, "num_register_tokens", None) or 0)))
    row, column = (np.where(known, x, -1) for x in (at // max(side, 1), at % max(side, 1)))
    return row, column
