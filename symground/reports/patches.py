"""Saliency over the patches of a picture, drawn over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from symground.reports.figures import figure_of

#: Of the strongest point: what is weaker is see-through.
_FAINT, _STRONG = 0.15, 0.85
_ROUNDING = 1e-6


def draw_patches(
    picture: Any, heats: Sequence[ArrayLike], titles: Sequence[str] = (), *, smooth: bool = True, width: float = 3.2
) -> Figure:
    """The picture, and beside it once for each heat the same with the heat over it.

    Args:
        picture: a PIL image, or an array [height,width,3].
        heats: each [height,width], not negative, as of
            :meth:`symground.analysis.questions.ImageQuestions.on_picture`; each on a scale of its own.
        titles: what stands over each heat.
        smooth: blend patches into each other, by a blur of half a patch's side; False shows them as they are.
        width: of each picture, inches.

    Raises:
        ValueError: a heat of another shape than the picture's, or with negative or no finite numbers.
    """
    shown = np.asarray(picture)
    arrays = [np.asarray(heat, dtype=float) for heat in heats]
    for i, heat in enumerate(arrays):
        if heat.shape != shown.shape[:2]:
            raise ValueError(f"heats[{i}]: expected shape {list(shown.shape[:2])}, got {list(heat.shape)}")
        if not np.isfinite(heat).all() or (heat < 0).any():
            raise ValueError(f"heats[{i}]: expected numbers that are finite and not negative")
    figure = figure_of(width * (1 + len(arrays)), width * shown.shape[0] / shown.shape[1] + 0.3)
    axes = figure.subplots(1, 1 + len(arrays), squeeze=False)[0]
    for axis in axes:
        axis.imshow(shown)
        axis.axis("off")
    axes[0].set_title("the picture", fontsize=10)
    for i, (axis, heat) in enumerate(zip(axes[1:], arrays, strict=True)):
        grey = shown.mean(-1) if shown.ndim == 3 else shown
        axis.imshow(grey, cmap="gray", vmin=0, vmax=255)
        heat = _blurred(heat) if smooth else heat
        most = heat.max()
        level = heat / most if most > 0 else heat
        axis.imshow(level, cmap="inferno", vmin=0, vmax=1, alpha=np.clip(_FAINT + level, 0, _STRONG))
        if i < len(titles):
            axis.set_title(titles[i], fontsize=10, parse_math=False)  # a question may speak of dollars
    return figure


def _blurred(heat: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter

    changes = np.flatnonzero((abs(np.diff(heat, axis=1)) > _ROUNDING * heat.max()).any(0))
    steps = np.diff(changes)
    steps = steps[steps > 1]  # a point that lies in two patches is between them
    patch = float(np.median(steps)) if len(steps) else 0.0
    blurred: NDArray[np.float64] = gaussian_filter(heat, patch / 2)
    return blurred
