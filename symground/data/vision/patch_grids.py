"""Where the tokens of an image lie in the picture, for each form of processor, and values of tokens as pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class PatchMap(NamedTuple):
    """Patches that form a grid over a part of an image."""

    places: NDArray[np.int64]
    """[h,w], the index of each patch among the image's tokens."""
    box: tuple[float, float, float, float]
    """The part of the picture that they cover: left, upper, right, lower, as shares of its width and height."""


def patch_maps(processor: Any, image: Any, inputs: Mapping[str, Tensor], count: int) -> tuple[PatchMap, ...]:
    """Where the ``count`` tokens of an image are in it; none if the processor has an unknown form."""
    whole = (0.0, 0.0, 1.0, 1.0)
    if "image_grid_thw" in inputs:  # Qwen-VL: merged patches of the whole picture
        merge = int(getattr(processor.image_processor, "merge_size", 1))
        _, h, w = inputs["image_grid_thw"][0].tolist()
        return (_grid(0, h // merge, w // merge, whole),) if count == h * w // merge**2 else ()
    pixels, sizes = inputs["pixel_values"], inputs.get("image_sizes")
    if sizes is None:
        side = math.isqrt(count)
        one = pixels.ndim == 4 and len(pixels) == 1 and side * side == count
        return (_grid(0, side, side, _cut(processor.image_processor, image)),) if one else ()
    patch, tokens = (getattr(processor, name, None) for name in ("patch_size", "num_image_tokens"))
    if pixels.ndim == 4 and patch is not None:  # Pixtral: patches of the whole picture, whatever its shape
        h, w = (sizes[0] // (patch * getattr(processor, "spatial_merge_size", 1))).tolist()
        return (_grid(0, h, w, whole),) if count == h * w else ()
    if pixels.ndim != 5 or (patch is not None and processor.vision_feature_select_strategy != "default"):
        return ()
    from transformers.image_processing_utils import select_best_resolution

    # LLaVA-NeXT and OneVision: the picture, then its unpadded tiles, a token at the end of each row
    side = math.isqrt(tokens or 0) if patch is None else pixels.shape[-1] // patch
    size = (image.height, image.width)
    best = select_best_resolution(size, processor.image_processor.image_grid_pinpoints)
    # The amount of padding removed depends on the processor's own rounding.
    unpadded, h = processor._get_unpadded_features(*size, side, side, *(n // pixels.shape[-1] for n in best))
    if count != side * side + unpadded + h:
        return ()
    once = _grid(0, side, side, whole)
    if not unpadded:  # so long and thin that all its tiles are padding
        return (once,)
    w = unpadded // h
    return once, _grid(side * side, h, w, whole, row=w + 1)


def _grid(first: int, h: int, w: int, box: tuple[float, float, float, float], row: int | None = None) -> PatchMap:
    return PatchMap(first + np.arange(h)[:, None] * (row or w) + np.arange(w)[None], box)


def _cut(image_processor: Any, image: Any) -> tuple[float, float, float, float]:
    """The part of a picture that a model sees after padding to a square, resizing and cropping, as shares."""

    def length(name: str, side: str) -> float | None:
        size = getattr(image_processor, name, None)
        found: float | None = size.get(side) if isinstance(size, Mapping) else getattr(size, side, None)
        return found

    def does(name: str, otherwise: bool = False) -> bool:
        return bool(getattr(image_processor, name, otherwise))

    padded = does("do_pad") and hasattr(image_processor, "pad_to_square")
    least = max(image.size) if padded else min(image.size)
    ends = []
    for side, own in (("width", image.width), ("height", image.height)):
        before = max(image.size) if padded else own
        short = length("size", "shortest_edge")
        resized = length("size", side) or before if short is None else short * before / least
        after = resized if does("do_resize", True) else before
        kept = (length("crop_size", side) or after) / after if does("do_center_crop") else 1.0
        ends.append(kept * before / own / 2)
    return 0.5 - ends[0], 0.5 - ends[1], 0.5 + ends[0], 0.5 + ends[1]


def on_image(maps: tuple[PatchMap, ...], values: Tensor | NDArray[Any], height: int, width: int) -> NDArray[np.float64]:
    """[height,width], the ``values`` [patches] on a picture's pixels: each patch's value is spread over its area.

    The sum is preserved, except for patches of the padding around the picture.

    Raises:
        ValueError: there are no maps.
    """
    if not maps:
        raise ValueError(
            "maps: expected at least one, got none: it is unknown where this model's image tokens lie in the picture"
        )
    of_token = np.asarray(values.detach().double().cpu() if isinstance(values, torch.Tensor) else values, dtype=float)
    total = np.zeros((height, width))
    for places, (left, upper, right, lower) in maps:
        rows, columns = _shares(height, places.shape[0], upper, lower), _shares(width, places.shape[1], left, right)
        total += rows @ of_token[places] @ columns.T
    return total


def _shares(points: int, patches: int, first: float, last: float) -> NDArray[np.float64]:
    """[points,patches], the share of each patch, between two ends, that each pixel gets."""
    edges, ends = np.linspace(0, 1, points + 1), np.linspace(first, last, patches + 1)
    common = np.minimum(edges[1:, None], ends[1:]) - np.maximum(edges[:-1, None], ends[:-1])
    taken: NDArray[np.float64] = common.clip(0) * patches / (last - first)
    return taken
