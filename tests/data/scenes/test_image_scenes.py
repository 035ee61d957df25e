"""Generated scenes whose objects are patches of an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from symground.data import Corpus, CorpusBuilder, GeneratedSettings
from symground.data.scenes import GeneratedImagesSettings, add_image_scenes
from symground.data.sequences import Shown, patch_ids

SCENES = GeneratedSettings(scenes=80, nouns=6)
IMAGES = GeneratedImagesSettings(grid=3, width=8, noise=0.0, clutter=0.0)


def make(folder: Path, images: GeneratedImagesSettings = IMAGES, probes: int = 4, **scenes: object) -> tuple[
    Corpus, dict[str, list[Shown]], int
]:  # fmt: skip
    builder = CorpusBuilder()
    shown, empty = add_image_scenes(builder, folder / "images", replace(SCENES, **scenes), images, probes)  # type: ignore[arg-type]
    return builder.write(folder / "data", images=folder / "images"), shown, empty


def rows(corpus: Corpus) -> list[np.ndarray]:
    return [corpus.tokens[a:b] for a, b in zip(corpus.documents[:-1], corpus.documents[1:], strict=True)]


def test_a_document_is_an_image_and_then_talk(tmp_path: Path) -> None:
    corpus, _, _ = make(tmp_path)
    words = len(corpus.tokenizer)
    assert corpus.images is not None
    assert (corpus.prefix, corpus.images.patches, corpus.images.width) == (9, 9, 8)
    assert corpus.statistics["documents_with_image"] == len(rows(corpus)) == 80
    for number, document in enumerate(rows(corpus)):
        assert np.array_equal(document[:9], patch_ids(number, 9, words))
        assert (document[9:] < words).all()
    # A training row may begin with the talk, never within an image.
    assert np.array_equal(corpus.starts, corpus.documents[:-1] + 9)
    assert sum(corpus.counts.values()) == len(corpus.tokens) - 80 * 9


def test_patches_show_the_objects_that_the_corpus_lists(tmp_path: Path) -> None:
    corpus, shown, empty = make(tmp_path, unsupported=0.0)
    assert corpus.images is not None
    codes = {}
    for noun, images in shown.items():
        assert len(images) == 4
        found = [corpus.images.features[image.image] for image in images]
        for features, image in zip(found, images, strict=True):
            assert np.flatnonzero(features.any(-1)).tolist() == list(image.patches)
        codes[noun] = found[0][images[0].patches[0]]
        assert all(np.array_equal(codes[noun], f[i.patches[0]]) for f, i in zip(found, images, strict=True))
    assert len({code.tobytes() for code in codes.values()}) == len(codes)
    assert not corpus.images.features[empty].any()
    for number, document in enumerate(rows(corpus)):
        features = corpus.images.features[number]
        seen = {noun for noun, code in codes.items() if (features == code).all(-1).any()}
        assert seen == {noun for noun, images in corpus.shown.items() if number in images}
        said = {token.partition(":")[0] for token in corpus.tokenizer.convert_ids_to_tokens(document[9:].tolist())}
        assert said & set(codes) <= seen  # talk names only objects in the image


def test_the_images_of_a_context_differ_in_the_noun_alone(tmp_path: Path) -> None:
    corpus, shown, _ = make(tmp_path, replace(IMAGES, clutter=0.7, size=2))
    assert corpus.images is not None
    for number in range(4):
        places = {images[number].patches for images in shown.values()}
        (place,) = places
        around = [np.delete(corpus.images.features[images[number].image], place, 0) for images in shown.values()]
        assert all(np.array_equal(around[0], other) for other in around)


def test_same_seed_same_images(tmp_path: Path) -> None:
    noisy = replace(IMAGES, noise=1.0)
    first, again, _ = (make(tmp_path / name, noisy, seed=seed)[0] for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert np.array_equal(first.tokens, again.tokens)
    assert (tmp_path / "a/images/features.npy").read_bytes() == (tmp_path / "b/images/features.npy").read_bytes()
    assert (tmp_path / "a/images/features.npy").read_bytes() != (tmp_path / "c/images/features.npy").read_bytes()


def test_settings_of_images(tmp_path: Path) -> None:
    whole, of_whole, _ = make(tmp_path / "whole", replace(IMAGES, size=4), max_objects=2)
    parts, of_parts, _ = make(tmp_path / "parts", replace(IMAGES, size=4, parts=2), max_objects=2)
    assert whole.images is not None
    assert parts.images is not None
    for noun, images in of_whole.items():
        assert len(images[0].patches) == 4
        alike = whole.images.features[images[0].image][list(images[0].patches)]
        assert (alike == alike[0]).all()
        seen = parts.images.features[of_parts[noun][0].image][list(of_parts[noun][0].patches)]
        # Each patch shows half of the features, two neighbours in the order of reading all of them.
        assert np.array_equal(seen[0] + seen[1], alike[0])
        assert np.array_equal(seen[0], seen[2])
        assert (seen[0] * seen[1] == 0).all()
    settled, _, _ = make(tmp_path / "settled", replace(IMAGES, position=1.0), max_objects=1)
    assert settled.images is not None
    for images in settled.shown.values():
        places = {tuple(np.flatnonzero(settled.images.features[image].any(-1))) for image in images}
        assert len(places) == 1
    full, _, _ = make(tmp_path / "full", replace(IMAGES, clutter=1.0))
    assert full.images is not None
    assert full.images.features.any(-1).all()
    noisy, _, empty = make(tmp_path / "noisy", replace(IMAGES, grid=16, noise=2.0))
    assert noisy.images is not None
    assert noisy.images.features[empty].astype(float).std() == pytest.approx(2.0, rel=0.1)


def test_scenes_without_talk_and_talk_without_objects(tmp_path: Path) -> None:
    silent, _, _ = make(tmp_path / "silent", silent_scenes=0.5)
    assert len(rows(silent)) < 60  # a scene without talk gives no document
    alone, _, _ = make(tmp_path / "alone", talk_alone=1.0)
    assert alone.images is not None
    assert not alone.shown
    assert not alone.images.features[:80].any()
    assert len(rows(alone)) == 80


@pytest.mark.parametrize(
    ("name", "value"),
    [("grid", 0), ("size", 17), ("size", 0), ("parts", 2), ("noise", -1.0), ("clutter", 1.5), ("position", -0.1)],
)
def test_a_setting_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        GeneratedImagesSettings(**{name: value})  # type: ignore[arg-type]


def test_settings_that_images_cannot_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cue: expected 'env' where scenes are images, got 'lan'"):
        make(tmp_path, cue="lan")
    with pytest.raises(ValueError, match=r"background: expected 0\.0 where scenes are images"):
        make(tmp_path, background=0.5)
    with pytest.raises(ValueError, match="size: 3 objects of 4 patches do not fit into an image of 9"):
        make(tmp_path, replace(IMAGES, size=4), max_objects=3)
