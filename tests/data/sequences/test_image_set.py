"""Image sets on disk, and patches as ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from symground.data import CorpusBuilder
from symground.data.sequences import ImageSet, image_key, patch_ids
from symground.files import write_json


@given(st.integers(1, 9), st.integers(0, 1000), st.integers(2, 500))
def test_ids_of_patches_follow_the_vocabulary_and_are_unique(patches: int, image: int, vocabulary: int) -> None:
    both = patch_ids([image, image + 1], patches, vocabulary)
    assert both.shape == (2, patches)
    assert both.min() == vocabulary + image * patches
    assert np.array_equal(both.ravel(), np.arange(both.min(), both.min() + 2 * patches))
    assert np.array_equal(patch_ids(image, patches, vocabulary), both[0])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("val2014/COCO_val2014_000000185565.jpg", "185565"), ("000000000007.png", "7"), ("7.jpg", "7"),
        ("VisualDialog_val2018/VisualDialog_val2018_000000254080.jpg", "254080"), ("folder9/cat.jpg", "cat.jpg"),
    ],
)  # fmt: skip
def test_the_key_of_an_image_is_the_last_number_in_its_name(name: str, key: str) -> None:
    assert image_key(name) == key


def test_a_damaged_image_set_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    with pytest.raises(FileNotFoundError, match=r"is not an image set: .*features\.npy is missing"):
        ImageSet.load(folder)
    folder.mkdir()
    np.save(folder / "features.npy", np.zeros((2, 4, 3), np.float16))
    (folder / "images.txt").write_text("a1.jpg\na2.jpg\na3.jpg\n")
    write_json(folder / "images.json", {})
    with pytest.raises(ValueError, match=r"expected \[N,P,E\] with N = 3, got \[2, 4, 3\]"):
        ImageSet.load(folder)
    (folder / "images.txt").write_text("a7.jpg\n")
    assert ImageSet.load(folder).numbers() == {"7": 0}
    (folder / "features.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match="damaged or cut short"):
        ImageSet.load(folder)


def test_too_many_patches_are_refused() -> None:
    builder = CorpusBuilder()
    builder.patches = 4
    with pytest.raises(
        ValueError, match=r"image: expected at most 1,073,741,824 patches in a corpus, got image 268435455"
    ):
        builder.add([["a"]], image=2**28 - 1)
    builder.add([["a"]], image=2**28 - 2)
