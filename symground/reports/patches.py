"""Saliency over the patches of an image, drawn over the image."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from symground.errors import flag, number
from symground.reports.figures import figure_of

#: Opacity at no saliency and at the largest; in between it grows with the saliency.
_FAINT, _STRONG = 0.15, 0.85
_ROUNDING = 1e-6
_LETTERS = 12  # per inch of a title


def draw_patches(
    picture: Any, heats: Sequence[ArrayLike], titles: Sequence[str] = (), *, smooth: bool = True, width: float = 3.2
) -> Figure:
    """The picture, and beside it a copy for each heat map with this map over it.

    Args:
        picture: a PIL image, or an array [height,width,3] of 0 to 255.
        heats: heat maps [height,width] of numbers that are not negative, such as those of
            :meth:`symground.analysis.ImageQuestions.on_picture`. Each has its own colour scale.
        titles: a title for each heat map; long ones are broken into lines.
        smooth: blur the map by half a patch's side, so that patches blend; False shows them unchanged.
        width: of each picture, in inches.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: the picture has another shape, or a heat map has another shape than the picture, or negative numbers
            or numbers that are not finite.
    """
    smooth, width = flag("smooth", smooth), number("width", width, "(0, inf)")
    shown = np.asarray(picture.convert("RGB") if hasattr(picture, "convert") else picture)
    if shown.ndim != 3 or shown.shape[-1] != 3:
        got = f"shape {list(shown.shape)}" if shown.ndim else f"{type(picture).__name__} {picture!r:.60}"
        raise ValueError(f"picture: expected a PIL image or an array [height,width,3], got {got}")
    arrays = [np.asarray(heat, dtype=float) for heat in heats]
    for i, heat in enumerate(arrays):
        if heat.shape != shown.shape[:2]:
            raise ValueError(f"heats[{i}]: expected shape {list(shown.shape[:2])}, got {list(heat.shape)}")
        if not np.isfinite(heat).all() or (heat < 0).any():
            raise ValueError(f"heats[{i}]: expected numbers that are finite and not negative")
    named = ["the picture", *(_in_lines(title, int(_LETTERS * width)) for title in titles[: len(arrays)])]
    above = 0.1 + 0.2 * max(title.count("\n") + 1 for title in named)
    figure = figure_of(width * (1 + len(arrays)), width * shown.shape[0] / shown.shape[1] + above)
    axes = figure.subplots(1, 1 + len(arrays), squeeze=False)[0]
    for axis in axes:
        axis.axis("off")
    for axis, title in zip(axes, named, strict=False):
        axis.set_title(title, fontsize=10, parse_math=False)  # a question may have dollar signs
    axes[0].imshow(shown)
    for axis, heat in zip(axes[1:], arrays, strict=True):
        axis.imshow(shown.mean(-1), cmap="gray", vmin=0, vmax=255)
        heat = _blurred(heat) if smooth else heat
        most = heat.max()
        level = heat / most if most > 0 else heat
        axis.imshow(level, cmap="inferno", vmin=0, vmax=1, alpha=np.clip(_FAINT + level, 0, _STRONG))
    figure.draw_without_rendering()  # the layout needs the size of the titles, which is known once they are drawn
    return figure


def _in_lines(title: str, letters: int) -> str:
    return "\n".join(part for line in title.splitlines() for part in wrap(line, letters) or [""])


def _blurred(heat: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter

    changes = np.flatnonzero((abs(np.diff(heat, axis=1)) > _ROUNDING * heat.max()).any(0))
    # A pixel that belongs to two patches changes on both of its sides.
    steps = np.diff(changes[np.diff(changes, prepend=-2) > 1])
    patch = float(np.median(steps)) if len(steps) else 0.0
    blurred: NDArray[np.float64] = gaussian_filter(heat, patch / 2)
    return blurred
