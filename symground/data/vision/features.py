"""Patch embeddings of images by a frozen DINOv2, computed once for an image set.

Images go through the model in batches. Each finished batch is logged, so that an interrupted extraction resumes where
it stopped. An image that cannot be read is set aside and listed by name.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from symground.data.files import LeftOut, Limits, create_array, file_names, files_in
from symground.data.sequences import ImageSet
from symground.data.vision.decoding import MAX_MEGAPIXELS
from symground.data.vision.dinov2 import Dinov2
from symground.errors import check_types, integer
from symground.files import put_folder, read_json, write_json
from symground.running import progress

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
_LOG = "done.txt"


@dataclass(frozen=True)
class FeatureSettings:
    """The model, and how images are read."""

    model: str = "facebook/dinov2-base"
    """A DINOv2 of transformers: a folder, or a name on the hub."""
    grid: int | None = None
    """Average patches to this many rows and columns; default: the model's own (16 for images of 224 pixels)."""
    batch_size: int = 32
    """Images in a batch."""
    device: str | None = None
    """The device that the model runs on; default: a GPU if there is one."""
    strict: bool = False
    """Stop at the first image that cannot be read; by default it is set aside and listed."""
    max_megapixels: int = MAX_MEGAPIXELS
    """Larger pictures are set aside and listed."""
    limits: Annotated[tyro.conf.OmitArgPrefixes[Limits], tyro.conf.arg(name="file")] = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("batch_size", "grid", "max_megapixels"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1)


def extract_features(paths: Sequence[str | Path], out: str | Path, settings: FeatureSettings) -> ImageSet:
    """Make the image set ``out`` from the images under ``paths``, or load it if it exists.

    Args:
        paths: image files, folders of them, .zip or .tar.* archives.
        out: the folder; until the image set is complete, its name ends in ".partial".
        settings: the model, and how images are read. Images are prepared as the model's own
            ``preprocessor_config.json`` says, or else as by DINOv2's authors: the shorter side to 256 pixels for a
            model of 224, the middle cut out, normalised with ImageNet's mean and deviation.

    Returns:
        The image set: float16 [N,P,E], the model's last hidden states of its patches, without that of [CLS].

    Raises:
        FileNotFoundError: a path or the model does not exist.
        ValueError: the image set has other images or another model; the model is no DINOv2; the grid does not divide
            the model's; no image can be read; or with ``strict``, one cannot.
    """
    out = Path(out)
    left_out: LeftOut = []
    names = file_names(paths, SUFFIXES, settings.limits, left_out)
    if not names:
        raise ValueError(f"paths: no image ({', '.join(SUFFIXES)}) in {', '.join(map(str, paths))}")
    requested = {
        "model": settings.model, "grid": settings.grid,
        "names": hashlib.sha256("\n".join(names).encode()).hexdigest(),
    }  # fmt: skip
    if (out / "images.json").is_file():
        _check_same(out, read_json(out / "images.json"), requested)
        return ImageSet.load(out)
    if out.exists():
        raise ValueError(f"out: expected an image set or a new folder, got {out}, which holds other files")
    partial = out.with_name(out.name + ".partial")
    if (partial / "images.json").is_file():
        _check_same(partial, read_json(partial / "images.json"), requested)
    else:
        shutil.rmtree(partial, ignore_errors=True)
    model = Dinov2(settings.model, settings.grid, settings.device)
    partial.mkdir(parents=True, exist_ok=True)
    write_json(partial / "images.json", requested)
    skipped = _extract(paths, names, partial, model, settings)
    skipped += [{"file": name, "reason": f"not read, it {why}"} for name, why in left_out]
    done = [name for name, reason in _logged(partial) if reason is None]
    if not done:
        raise ValueError(f"paths: none of {len(names)} images could be read; the first, {_as_text(skipped[0])}")
    (partial / "images.txt").write_text("".join(f"{name}\n" for name in done), encoding="utf-8")
    write_json(partial / "images.json", {**requested, **model.description, "skipped": skipped})
    (partial / _LOG).unlink()
    put_folder(partial, out)
    return ImageSet.load(out)


def _extract(
    paths: Sequence[str | Path], names: Sequence[str], folder: Path, model: Dinov2, settings: FeatureSettings
) -> list[dict[str, str]]:
    """Fill the rows of the remaining images; returns the images that were set aside."""
    logged = _logged(folder)
    row = sum(reason is None for _, reason in logged)
    shape = (len(names), model.patches, model.width)
    resumed = (folder / "features.npy").is_file() and bool(logged)
    if resumed:
        features = np.lib.format.open_memmap(folder / "features.npy", "r+")
    else:
        features = create_array(folder / "features.npy", np.float16, shape)
        (folder / _LOG).write_text("", encoding="utf-8")
        logged, row = [], 0
    # Rows are in the order of arrival. Images that cannot be read leave unused rows at the end.
    with (
        ThreadPoolExecutor() as pool,
        (folder / _LOG).open("a", encoding="utf-8") as log,
        progress("features", len(names), len(logged)) as bar,
    ):
        for batch in _batches(paths, settings, len(logged)):
            pixels = list(pool.map(lambda named: model.prepared(named[1], settings.max_megapixels), batch))
            found = [x for x in pixels if isinstance(x, Tensor)]
            lines = []
            for (name, _), x in zip(batch, pixels, strict=True):
                reason = None if isinstance(x, Tensor) else x
                if reason is not None and settings.strict:
                    raise ValueError(f"paths: {_as_text({'file': name, 'reason': reason})}")
                lines.append(json.dumps([name, reason]) + "\n")
            if found:
                features[row : row + len(found)] = model.patches_of(torch.stack(found))
                features.flush()
                row += len(found)
            log.write("".join(lines))  # after the rows, so that every logged image has its row
            log.flush()
            for _ in batch:
                bar.advance()
    return [{"file": name, "reason": reason} for name, reason in _logged(folder) if reason is not None]


def _logged(folder: Path) -> list[tuple[str, str | None]]:
    """(image, why it was set aside or None) for each finished image; an incomplete last line is removed."""
    path = folder / _LOG
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [(name, reason) for name, reason in map(json.loads, whole.splitlines())]


def _batches(paths: Sequence[str | Path], settings: FeatureSettings, done: int) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    for named in files_in(paths, SUFFIXES, done, settings.limits):
        batch.append(named)
        if len(batch) == settings.batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _check_same(folder: Path, found: dict[str, Any], requested: dict[str, Any]) -> None:
    differing = [
        "other images" if key == "names" else f"{key}: expected {value!r}, got {found.get(key)!r}"
        for key, value in requested.items()
        if found.get(key) != value
    ]
    if differing:
        raise ValueError(f"out: {folder} holds another image set ({'; '.join(differing)}); choose another folder")


def _as_text(skipped: dict[str, str]) -> str:
    return f"{skipped['file']}: {skipped['reason']}"


@dataclass(frozen=True, kw_only=True)
class Features(FeatureSettings):
    """``symground features``."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Images, folders, .zip or .tar.* archives of them."""
    out: str
    """Folder of the image set."""

    def run(self) -> Path:
        made = extract_features(self.paths, self.out, self)
        print(f"{len(made):,} images of {made.patches} patches with {made.width} features", file=sys.stderr)
        for skipped in made.description["skipped"]:
            print(f"set aside: {skipped['file']}: {skipped['reason']}", file=sys.stderr)
        return Path(self.out)
