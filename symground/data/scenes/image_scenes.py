"""Generated scenes with images: patches show the objects, and the talk is that of the generated corpus.

An image is a grid of patches, each a feature vector as from a frozen vision model. Each noun has one vector, which the
patches of its object show with noise. Other patches may show things that have no name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from symground import errors
from symground.data.files import create_array
from symground.data.scenes.word_scenes import Family, GeneratedSettings
from symground.data.sequences import CorpusBuilder, Shown
from symground.errors import check_types, integer
from symground.files import put_folder, write_json


@dataclass(frozen=True)
class GeneratedImagesSettings:
    """Settings of the generated images."""

    grid: int = 4
    """Rows and columns of patches in an image."""
    width: int = 32
    """Features of a patch."""
    size: int = 1
    """Adjacent patches that an object covers."""
    parts: int = 1
    """Each patch of an object shows one of this many parts of its features, in turn; 1: all features."""
    noise: float = 0.5
    """Standard deviation of the noise on every feature; a feature itself has 1."""
    clutter: float = 0.5
    """Share of the other patches that show something without a name."""
    position: float = 0.0
    """Chance that an object is at its noun's own place, which then identifies it; else its place is random."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("grid", "width", "size", "parts"):
            integer(name, getattr(self, name), 1)
        if self.size > self.grid**2:
            raise ValueError(f"size: expected at most the {self.grid**2} patches of an image, got {self.size}")
        if not self.parts <= min(self.size, self.width):
            raise ValueError(
                f"parts: expected at most the {self.size} patches of an object and its {self.width} features, "
                f"got {self.parts}"
            )
        for name in ("clutter", "position"):
            errors.number(name, getattr(self, name), "[0, 1]")
        errors.number("noise", self.noise, "[0, inf)")

    @property
    def patches(self) -> int:
        return self.grid**2


def add_image_scenes(
    builder: CorpusBuilder, folder: str | Path, scenes: GeneratedSettings, images: GeneratedImagesSettings, probes: int
) -> tuple[dict[str, list[Shown]], int]:
    """Add scenes to ``builder``, a document each: an image, then talk. The images become an image set in ``folder``.

    Args:
        builder: collects the documents.
        folder: the image set's; it must not exist.
        scenes: settings of the objects and the talk; ``scenes_per_document`` is ignored.
        images: settings of the images.
        probes: this many further images of each noun alone are made for probing; their nouns have random places. The
            i-th images of all nouns differ only in the noun and the noise.

    Returns:
        noun → its images for probing; and the index of an image that shows no noun.

    Raises:
        ValueError: objects do not fit into an image, or the scenes have a setting that images cannot have.
    """
    _check(scenes, images)
    family, painter = Family(scenes), Painter(scenes.objects, images, scenes.seed)
    partial = Path(folder).with_name(Path(folder).name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    count = scenes.scenes + probes * scenes.nouns + 1
    features = create_array(partial / "features.npy", np.float16, (count, images.patches, images.width))
    builder.patches = images.patches
    for number in range(scenes.scenes):
        silent, alone = family.noise()
        objects = family.objects()
        features[number] = painter.scene(number, [] if alone else objects)
        tokens = [*family.distractors(), *([] if silent else family.talk(objects))]
        # An image without talk gets no document: there would be nothing to train on.
        builder.add([] if silent else [tokens], f"scene {number}", image=number, shown=[] if alone else objects)
    shown: dict[str, list[Shown]] = {noun: [] for noun in scenes.objects}
    number = scenes.scenes
    for probe in range(probes):
        for noun, (image, patches) in zip(scenes.objects, painter.probes(probe), strict=True):
            features[number] = image
            shown[noun].append(Shown(number, patches))
            number += 1
    features[number] = painter.scene(number, [])
    features.flush()
    del features
    (partial / "images.txt").write_text("", encoding="utf-8")
    write_json(partial / "images.json", {"generated": asdict(images)})
    put_folder(partial, Path(folder))
    builder.statistics |= {"generated": asdict(scenes), "images": asdict(images)}
    return shown, number


def _check(scenes: GeneratedSettings, images: GeneratedImagesSettings) -> None:
    if scenes.max_objects * images.size > images.patches:
        raise ValueError(
            f"size: {scenes.max_objects} objects of {images.size} patches do not fit into an image of {images.patches}"
        )
    for name, default in (("cue", "env"), ("background", 0.0)):
        if getattr(scenes, name) != default:
            raise ValueError(f"{name}: expected {default!r} where scenes are images, got {getattr(scenes, name)!r}")


class Painter:
    """The patches that show a given number of nouns. Every image has its own random numbers."""

    def __init__(self, nouns: Sequence[str], images: GeneratedImagesSettings, seed: int = 0) -> None:
        self._settings, self._seed, self._nouns = images, seed, tuple(nouns)
        rng, count = np.random.default_rng((seed, 0)), len(self._nouns)
        self._code: Mapping[str, NDArray[np.float64]] = dict(
            zip(self._nouns, rng.standard_normal((count, images.width)), strict=True)
        )
        self._nameless = rng.standard_normal((count, images.width))
        self._own_place = dict(zip(self._nouns, rng.integers(images.patches, size=count).tolist(), strict=True))
        at = np.stack(np.divmod(np.arange(images.patches), images.grid), 1)  # [P,2] row and column
        self._distance = ((at[:, None] - at[None]) ** 2).sum(-1)  # [P,P] squared
        # A part is a range of features; the last is shorter if the parts do not divide them.
        self._part = np.arange(images.width) * images.parts // images.width  # [E]

    def scene(self, number: int, objects: Sequence[str]) -> NDArray[np.float64]:
        """[P,E], an image of these objects at their places."""
        rng = np.random.default_rng((self._seed, 1, number))
        image, free = self._surroundings(rng), set(range(self._settings.patches))
        for noun in objects:
            own = self._settings.position > 0 and rng.random() < self._settings.position
            centre = self._own_place[noun] if own else int(rng.integers(self._settings.patches))
            patches = self._around(centre, free)
            self._show(image, noun, patches)
            free -= set(patches)
        return image + self._settings.noise * rng.standard_normal(image.shape)

    def probes(self, number: int) -> Iterator[tuple[NDArray[np.float64], tuple[int, ...]]]:
        """([P,E], the patches that show it) for each noun alone, all at the same place."""
        rng = np.random.default_rng((self._seed, 2, number))
        empty = self._surroundings(rng)
        patches = self._around(int(rng.integers(self._settings.patches)), set(range(self._settings.patches)))
        for noun in self._nouns:
            image = empty.copy()
            self._show(image, noun, patches)
            yield image + self._settings.noise * rng.standard_normal(image.shape), patches

    def _surroundings(self, rng: np.random.Generator) -> NDArray[np.float64]:
        cluttered = rng.random(self._settings.patches) < self._settings.clutter
        return self._nameless[rng.integers(len(self._nameless), size=self._settings.patches)] * cluttered[:, None]

    def _around(self, centre: int, free: set[int]) -> tuple[int, ...]:
        """The free patches nearest to the centre, in order."""
        nearest = sorted(free, key=lambda p: (self._distance[centre, p], p))
        return tuple(sorted(nearest[: self._settings.size]))

    def _show(self, image: NDArray[np.float64], noun: str, patches: Sequence[int]) -> None:
        for k, patch in enumerate(patches):
            image[patch] = self._code[noun] * (self._part == k % self._settings.parts)
