"""Patch features by a DINOv2 with random weights: the model's own numbers, resuming, and images that are set aside."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model, GPT2Config

from symground.cli import main
from symground.data.sequences import ImageSet
from symground.data.vision import FeatureSettings, extract_features
from symground.data.vision.dinov2 import Dinov2


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model of 4 × 4 patches, without a preparation of its own."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14
    )
    folder = tmp_path_factory.mktemp("dinov2")
    Dinov2Model(config).save_pretrained(folder)
    return folder


def photo(seed: int, size: tuple[int, int] = (80, 60)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i in range(5):
        (folder / f"{i:03}.png").write_bytes(photo(i))
    (folder / "more" / "005.JPEG").write_bytes(photo(5, (60, 90)))
    (folder / "notes.txt").write_text("no image")
    return folder


def expected(content: bytes, folder: Path) -> torch.Tensor:
    """[P,E] by transformers: hidden states of the patches after DINOv2's preparation at this model's size."""
    prepare = BitImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, resample=3,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    pixels = prepare(Image.open(io.BytesIO(content)).convert("RGB"), return_tensors="pt")["pixel_values"]
    model = Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(pixel_values=pixels).last_hidden_state[0, 1:]


def test_features_are_the_hidden_states_of_patches(photos: Path, dinov2: Path, tmp_path: Path) -> None:
    images = extract_features([photos], tmp_path / "out", FeatureSettings(str(dinov2), batch_size=4))
    assert images.names == ("000.png", "001.png", "002.png", "003.png", "004.png", "more/005.JPEG")
    assert images.features.shape == (6, 16, 16)
    assert images.features.dtype == np.float16
    for name, found in zip(images.names, images.features, strict=True):
        wanted = expected((photos / name).read_bytes(), dinov2)
        torch.testing.assert_close(torch.from_numpy(found).float(), wanted, atol=2e-3, rtol=2e-3)
    assert images.description["pixels"] == 56
    assert images.description["skipped"] == []
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"features.npy", "images.json", "images.txt"}
    assert not (tmp_path / "out.partial").exists()


def test_a_coarser_grid_is_the_mean_of_its_patches(photos: Path, dinov2: Path, tmp_path: Path) -> None:
    images = extract_features([photos / "000.png"], tmp_path / "out", FeatureSettings(str(dinov2), grid=2))
    fine = expected((photos / "000.png").read_bytes(), dinov2).view(4, 4, 16)
    coarse = torch.stack([fine[y : y + 2, x : x + 2].mean((0, 1)) for y in (0, 2) for x in (0, 2)])
    torch.testing.assert_close(torch.from_numpy(images.features[0]).float(), coarse, atol=2e-3, rtol=2e-3)


def test_a_models_own_preparation_is_used(photos: Path, dinov2: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    Dinov2Model.from_pretrained(dinov2).save_pretrained(own)
    BitImageProcessorPil(
        do_resize=True, size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(own)
    assert Dinov2(str(own)).patches == 4


def test_an_extraction_resumes_where_it_stopped(
    photos: Path, dinov2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FeatureSettings(str(dinov2), batch_size=2)
    whole = extract_features([photos], tmp_path / "whole", settings)
    own = Dinov2.patches_of
    batches: list[int] = []

    def fails_on_the_third(model: Dinov2, pixels: torch.Tensor) -> np.ndarray:
        batches.append(len(pixels))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return own(model, pixels)

    monkeypatch.setattr(Dinov2, "patches_of", fails_on_the_third)
    with pytest.raises(KeyboardInterrupt):
        extract_features([photos], tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    log = tmp_path / "out.partial" / "done.txt"
    log.write_text(log.read_text() + '["cut o')
    # Another grid makes another image set, and the finished rows of this one stay.
    with pytest.raises(ValueError, match=r"holds another image set \(grid: expected 2, got None\)"):
        extract_features([photos], tmp_path / "out", FeatureSettings(str(dinov2), grid=2))
    extract_features([photos], tmp_path / "out", settings)
    assert batches == [2, 2, 2, 2]
    assert (tmp_path / "out/features.npy").read_bytes() == (tmp_path / "whole/features.npy").read_bytes()
    assert extract_features([photos], tmp_path / "out", settings).names == whole.names
    assert batches == [2, 2, 2, 2]
    (photos / "new.png").write_bytes(photo(9))
    with pytest.raises(ValueError, match=r"holds another image set \(other images\)"):
        extract_features([photos], tmp_path / "out", settings)


def test_unreadable_images_are_set_aside(photos: Path, dinov2: Path, tmp_path: Path) -> None:
    (photos / "001.png").write_bytes(photo(1)[:500])
    (photos / "002.png").write_text("no image at all")
    settings = FeatureSettings(str(dinov2), batch_size=4)
    images = extract_features([photos], tmp_path / "out", settings)
    assert images.names == ("000.png", "003.png", "004.png", "more/005.JPEG")
    assert len(images) == 4
    torch.testing.assert_close(
        torch.from_numpy(images.features[1]).float(), expected(photo(3), dinov2), atol=2e-3, rtol=2e-3
    )
    assert [skipped["file"] for skipped in images.description["skipped"]] == ["001.png", "002.png"]
    assert images.description["skipped"][1]["reason"] == "not an image of a known format"
    with pytest.raises(ValueError, match=r"paths: 001\.png: "):
        extract_features([photos], tmp_path / "strict", FeatureSettings(str(dinov2), strict=True))
    assert not (tmp_path / "strict").exists()
    with pytest.raises(ValueError, match=r"none of 1 images could be read; the first, 002\.png: not an image"):
        extract_features([photos / "002.png"], tmp_path / "none", settings)


@pytest.mark.parametrize("kind", ["bmp", "gif", "tiff", "ppm", "jpeg", "webp", "png"])
def test_pictures_of_every_format_are_read(tmp_path: Path, dinov2: Path, kind: str) -> None:
    endings = {"jpeg": ["jpg", "jpe", "JFIF", "jpeg"], "tiff": ["tif", "TIFF"]}.get(kind, [kind])
    (tmp_path / "in").mkdir()
    with Image.open(io.BytesIO(photo(0))) as picture:
        for ending in endings:
            picture.save(tmp_path / "in" / f"a.{ending}", kind)
    found = extract_features([tmp_path / "in"], tmp_path / "out", FeatureSettings(model=str(dinov2)))
    assert sorted(found.names) == sorted(f"a.{ending}" for ending in endings)


@pytest.mark.parametrize("size", [(1, 1), (40, 1), (40, 3), (3, 40), (1, 40)], ids=str)
def test_a_picture_of_three_rows_is_not_read_as_channels_first(dinov2: Path, size: tuple[int, int]) -> None:
    """A picture of one colour, of 1 or 3 rows or columns, keeps its colour everywhere."""
    stream, colour = io.BytesIO(), (200, 10, 90)
    Image.new("RGB", size, colour).save(stream, "png")
    found = Dinov2(str(dinov2)).prepared(stream.getvalue())
    assert isinstance(found, torch.Tensor)
    expected = (np.array(colour) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found, np.broadcast_to(expected[:, None, None], found.shape), atol=1e-5)


def test_an_archive_gives_the_same_features_as_its_folder(photos: Path, dinov2: Path, tmp_path: Path) -> None:
    packed = tmp_path / "photos.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(photos.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(photos).as_posix())
    settings = FeatureSettings(str(dinov2), batch_size=3)
    zipped = extract_features([packed], tmp_path / "zipped", settings)
    assert zipped.names == extract_features([photos], tmp_path / "folder", settings).names
    assert (tmp_path / "zipped/features.npy").read_bytes() == (tmp_path / "folder/features.npy").read_bytes()


def test_bad_arguments_are_refused(photos: Path, dinov2: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="model: expected a model's folder or its name on the hub, got .*nothing "
    ):
        extract_features([photos], tmp_path / "out", FeatureSettings(str(tmp_path / "nothing")))
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="model: expected a DINOv2, got a gpt2 "):
        extract_features([photos], tmp_path / "out", FeatureSettings(str(tmp_path / "gpt2")))
    with pytest.raises(ValueError, match="grid: expected a divisor of 4, the model's rows of patches; got 3"):
        extract_features([photos], tmp_path / "out", FeatureSettings(str(dinov2), grid=3))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"paths: no image \(\.jpg, .*\) in "):
        extract_features([tmp_path / "empty"], tmp_path / "out", FeatureSettings(str(dinov2)))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="out: expected an image set or a new folder, got .*, which holds other files"):
        extract_features([photos], tmp_path / "taken", FeatureSettings(str(dinov2)))
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "out").exists()


def test_the_command(photos: Path, dinov2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "002.png").write_text("no image at all")
    out = tmp_path / "out"
    assert main(["features", str(photos), "--out", str(out), "--model", str(dinov2), "--grid", "1"]) == 0
    printed = capsys.readouterr()
    assert "5 images of 1 patches with 16 features" in printed.err
    assert "set aside: 002.png: not an image" in printed.err
    assert printed.out.strip() == str(out)
    assert len(ImageSet.load(out)) == 5
    assert json.loads((out / "images.json").read_text())["grid"] == 1


def test_real_photographs_of_coco(real_data: Path, dinov2: Path, tmp_path: Path) -> None:
    images = extract_features([real_data / "coco" / "images"], tmp_path / "out", FeatureSettings(str(dinov2)))
    assert len(images) == 12
    captions = json.loads((real_data / "coco" / "images" / "captions.json").read_text())
    assert "62554" in images.numbers()
    assert captions
