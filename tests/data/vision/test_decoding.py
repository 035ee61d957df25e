"""Pictures from files: damage, size, colour and rotation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from symground.data.vision import read_image
from tests.data.vision.inputs import noise


def test_missing_and_damaged_pictures_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"image: .*gone\.png does not exist"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"image: .*text\.png cannot be read"):
        read_image(tmp_path / "text.png")
    for kind in ("png", "jpg", "webp", "gif", "bmp"):
        whole = tmp_path / f"whole.{kind}"
        noise(40, 40).save(whole)
        content = whole.read_bytes()
        assert read_image(whole).size == (40, 40)
        for end in range(1, len(content) - 8, max(1, len(content) // 40)):
            whole.write_bytes(content[:end])
            with pytest.raises(ValueError, match=rf"image: .*whole\.{kind} cannot be read"):
                read_image(whole)


def test_a_picture_is_rgb_and_upright(tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    grey.save(tmp_path / "grey.png")
    found = read_image(tmp_path / "grey.png")
    assert (found.mode, found.size) == ("RGB", (3, 2))
    assert (np.asarray(found) == np.asarray(grey)[..., None]).all()
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera lay on its side
    grey.save(tmp_path / "turned.png", exif=turned)
    upright = np.asarray(read_image(tmp_path / "turned.png"))
    assert (upright[..., 0] == np.rot90(np.asarray(grey), -1)).all()


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (13_000, 13_000)).save(path)
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(
        ValueError, match=r"large\.png cannot be read \(13,000 × 13,000 points are more than the limit of 90"
    ):
        read_image(path)
    Image.new("RGB", (1000, 1100)).save(path)
    assert read_image(path, max_megapixels=2).size == (1000, 1100)
    with pytest.raises(ValueError, match="limit of 1 million"):
        read_image(path, max_megapixels=1)
    assert before == Image.MAX_IMAGE_PIXELS
