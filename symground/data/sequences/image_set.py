"""Image sets, which are patch embeddings on disk, and the ids of patches in a sequence.

The folder of an image set has ``features.npy`` (float16 [N,P,E]: images, their patches row by row from the top left,
features), ``images.txt`` (one name per line) and ``images.json`` (their source, and the images set aside). In a
vocabulary of V words, id V + i·P + p is patch p of image i. To a model, an image is P ids like others; its embedding
layer looks them up here (`symground.models.architectures.image_tokens`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from symground.files import read_json

_NUMBER = re.compile(r"(\d+)\D*$")


class Shown(NamedTuple):
    """An image that shows a noun."""

    image: int
    """Its index in the image set."""
    patches: tuple[int, ...] = ()
    """The patches that show the noun; empty if unknown, and then the whole image counts."""


@dataclass(frozen=True)
class ImageSet:
    """Patch embeddings of N images, memory-mapped."""

    features: NDArray[np.float16]
    """[N,P,E]"""
    names: tuple[str, ...]
    """The N images' names; empty if they were generated."""
    description: dict[str, Any]

    @staticmethod
    def load(folder: str | Path) -> ImageSet:
        """Load the image set in ``folder``.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: its features are damaged, or there are fewer than names.
        """
        folder = Path(folder)
        for name in ("features.npy", "images.txt", "images.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"images: {folder} is not an image set: {folder / name} is missing")
        names = tuple((folder / "images.txt").read_text(encoding="utf-8").splitlines())
        try:
            # Copy on write, because torch warns about read-only arrays.
            features = np.load(folder / "features.npy", mmap_mode="c", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"images: {folder / 'features.npy'}: damaged or cut short ({error})") from error
        if features.ndim != 3 or len(features) < len(names):
            raise ValueError(
                f"images: {folder / 'features.npy'}: expected [N,P,E] with N = {len(names)}, got {list(features.shape)}"
            )
        return ImageSet(features[: len(names)] if names else features, names, read_json(folder / "images.json"))

    def __len__(self) -> int:
        return len(self.features)

    @property
    def patches(self) -> int:
        """P, the patches of each image."""
        return int(self.features.shape[1])

    @property
    def width(self) -> int:
        """E, the features of each patch."""
        return int(self.features.shape[2])

    def numbers(self) -> dict[str, int]:
        """An image's key → its index in the set. The key is the last run of digits in the file's name without leading
        zeros, as in COCO's and VisDial's names (COCO_val2014_000000185565.jpg is 185565), or the name if it has
        none."""
        return {image_key(name): i for i, name in enumerate(self.names)}


def image_key(name: str) -> str:
    """The key that identifies an image across data sets with different folders: see :meth:`ImageSet.numbers`."""
    number = _NUMBER.search(Path(name).stem)
    return str(int(number[1])) if number else Path(name).name


def patch_ids(images: int | Iterable[int], patches: int, vocabulary: int) -> NDArray[np.int64]:
    """[P] ids of an image's patches, or [N,P] of several images, after a vocabulary of this size."""
    each = np.asarray(images, dtype=np.int64)[..., None] * patches
    return vocabulary + each + np.arange(patches)
