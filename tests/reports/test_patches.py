"""Heat maps over a picture: the arrays that are drawn."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from symground.data.vision import PatchMap, on_image
from symground.reports import draw_patches

HEIGHT, WIDTH = 24, 36
PICTURE = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def heat_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    places = np.arange(values.size).reshape(values.shape)
    return on_image((PatchMap(places, (0.0, 0.0, 1.0, 1.0)),), values.ravel(), HEIGHT, WIDTH)


def layers(axis: Axes) -> list[NDArray[np.float64]]:
    return [np.asarray(image.get_array()) for image in axis.images]


def level_and_alpha(figure: Figure, panel: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    image = figure.axes[panel].images[-1]
    return np.asarray(image.get_array()), np.asarray(image.get_alpha())


def test_the_picture_and_a_panel_for_each_heat() -> None:
    heats = [heat_of(np.random.default_rng(i).random((4, 6))) for i in range(2)]
    figure = draw_patches(PICTURE, heats, ["one", "costs $5 or $6_x?"], smooth=False)
    assert [len(axis.images) for axis in figure.axes] == [1, 2, 2]
    assert [axis.get_title() for axis in figure.axes] == ["the picture", "one", "costs $5 or $6_x?"]
    assert (layers(figure.axes[0])[0] == PICTURE).all()
    for i, heat in enumerate(heats):
        grey, _ = layers(figure.axes[1 + i])
        np.testing.assert_allclose(grey, PICTURE.mean(-1))
        assert figure.axes[1 + i].images[0].get_clim() == (0, 255)
        level, alpha = level_and_alpha(figure, 1 + i)
        np.testing.assert_allclose(level, heat / heat.max())  # on a scale of its own
        assert figure.axes[1 + i].images[1].get_clim() == (0, 1)
        # Stronger heat is more opaque.
        order = np.argsort(level, axis=None)
        assert (np.diff(alpha.ravel()[order]) >= 0).all()
        assert 0 < alpha.min() < alpha.max() < 1
    figure.draw_without_rendering()  # dollars are no formula


@pytest.mark.parametrize("shape", [(24, 36), (20, 60), (60, 20)])
def test_titles_stand_within_the_figure(shape: tuple[int, int]) -> None:
    question = "Is there a motorcycle behind the umbrella, or beside it, or nowhere in the image at all?"
    picture = np.zeros((*shape, 3), dtype=np.uint8)
    figure = draw_patches(picture, [np.ones(shape)] * 2, [f"{question}\nright: no, said: yes", "short"])
    figure.savefig(io.BytesIO(), format="png")
    for left, axis in enumerate(figure.axes):
        box = axis.title.get_window_extent()
        assert left * figure.bbox.width / 3 <= box.x0 <= box.x1 <= (left + 1) * figure.bbox.width / 3
        assert axis.get_window_extent().y1 < box.y0 <= box.y1 <= figure.bbox.height
    assert figure.axes[1].get_title().replace("\n", " ") == f"{question} right: no, said: yes"
    assert figure.axes[1].get_title().endswith("\nright: no, said: yes")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_a_picture_of_any_mode_is_drawn_in_colours(mode: str) -> None:
    picture = Image.fromarray(PICTURE).convert(mode)
    figure = draw_patches(picture, [np.ones((HEIGHT, WIDTH))])
    assert (layers(figure.axes[0])[0] == np.asarray(picture.convert("RGB"))).all()
    assert [axis.get_title() for axis in figure.axes] == ["the picture", ""]


def test_a_heat_of_zeros_is_faint_everywhere() -> None:
    for smooth in (True, False):
        level, alpha = level_and_alpha(draw_patches(PICTURE, [np.zeros((HEIGHT, WIDTH))], smooth=smooth))
        assert (level == 0).all()
        assert len(np.unique(alpha)) == 1
        assert alpha.max() < 0.2


def test_no_heat_is_the_picture_alone() -> None:
    assert len(draw_patches(PICTURE, []).axes) == 1


@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (8, 12)])
def test_patches_blend_over_half_a_patch(shape: tuple[int, int]) -> None:
    """Sides of patches are whole numbers of pixels or not. Nothing is lost at the borders."""
    heat = heat_of(np.random.default_rng(1).random(shape) + 0.1)
    level, _ = level_and_alpha(draw_patches(PICTURE, [heat]))
    assert level.max() == pytest.approx(1)
    sharp, _ = level_and_alpha(draw_patches(PICTURE, [heat], smooth=False))
    steps = [abs(np.diff(x, axis=1)).max() for x in (level, sharp)]
    assert steps[0] < steps[1] / 1.5
    np.testing.assert_allclose(level / level.sum(), blurred(heat, WIDTH // shape[1] / 2), atol=1e-6)


def blurred(heat: NDArray[np.float64], deviation: float) -> NDArray[np.float64]:
    """A Gaussian blur by its definition, with the picture mirrored at its borders."""
    mirrored = np.pad(heat, 40, mode="symmetric")
    far = np.arange(-40, 41)
    curve = np.exp(-(far**2) / (2 * deviation**2))
    curve /= curve.sum()
    for axis in (0, 1):
        mirrored = np.apply_along_axis(np.convolve, axis, mirrored, curve, "valid")
    found: NDArray[np.float64] = mirrored / heat.sum()
    return found


def test_a_heat_whose_middle_row_is_alike_is_smoothed_too() -> None:
    values = np.zeros((4, 6))
    values[0, [1, 3]] = 1
    level, _ = level_and_alpha(draw_patches(PICTURE, [heat_of(values)]))
    assert len(np.unique(level.round(6))) > 20


@pytest.mark.parametrize(
    ("message", "heat"),
    [
        (r"heats\[1\]: expected shape \[24, 36\], got \[36, 24\]", np.ones((WIDTH, HEIGHT))),
        (r"heats\[1\]: expected shape \[24, 36\], got \[24\]", np.ones(HEIGHT)),
        (r"heats\[1\]: expected shape \[24, 36\], got \[24, 36, 1\]", np.ones((HEIGHT, WIDTH, 1))),
        (r"heats\[1\]: expected numbers that are finite and not negative", np.full((HEIGHT, WIDTH), -1e-3)),
        (r"heats\[1\]: expected numbers that are finite and not negative", np.full((HEIGHT, WIDTH), np.nan)),
        (r"heats\[1\]: expected numbers that are finite and not negative", np.full((HEIGHT, WIDTH), np.inf)),
    ],
)
def test_heats_that_do_not_fit_are_refused(message: str, heat: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=message):
        draw_patches(PICTURE, [np.ones((HEIGHT, WIDTH)), heat])


def test_a_picture_that_is_none_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"picture: expected a PIL image or an array \[height,width,3\], got shape \[24, 36\]"
    ):
        draw_patches(PICTURE[..., 0], [np.ones((HEIGHT, WIDTH))])
