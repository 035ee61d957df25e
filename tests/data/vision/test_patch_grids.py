"""Where the tokens of an image lie in the picture, against what each model sees there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import avg_pool2d
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from symground.data.vision import PatchMap, on_image, processed, prompt_text, read_prompt
from symground.data.vision.patch_grids import patch_maps
from tests.data.vision.inputs import TEXT, llava_with, noise


def box_of(processor: Any, height: int, width: int) -> tuple[float, float, float, float]:
    (found,) = read_prompt(processor, noise(height, width), TEXT).maps
    assert found.places.tolist() == np.arange(16).reshape(4, 4).tolist()
    return found.box


def test_the_box_is_the_part_of_a_picture_that_the_model_sees(llava_processor: Any) -> None:
    assert box_of(llava_processor, 16, 16) == (0, 0, 1, 1)
    assert box_of(llava_processor, 20, 30) == pytest.approx((1 / 6, 0, 5 / 6, 1))
    assert box_of(llava_processor, 24, 18) == pytest.approx((0, 1 / 8, 1, 7 / 8))
    kinds = transformers.CLIPImageProcessor, transformers.LlavaImageProcessor

    def seen(kind: Any, height: int, width: int, **how: Any) -> tuple[float, float, float, float]:
        sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, **how}
        return box_of(
            llava_with(SimpleNamespace(**{**vars(llava_processor), "image_processor": kind(**sides)})), height, width
        )

    # Resized to more than the crop.
    assert seen(kinds[0], 20, 30, size={"shortest_edge": 20}) == pytest.approx((7 / 30, 0.1, 23 / 30, 0.9))
    # Resized to a square without a crop.
    for how in ({"do_center_crop": False}, {}):
        assert seen(kinds[0], 20, 30, size={"height": 16, "width": 16}, **how) == (0, 0, 1, 1)
    assert seen(kinds[0], 20, 40, do_resize=False) == pytest.approx((0.3, 0.1, 0.7, 0.9))
    # Padded to a square before resizing.
    assert seen(kinds[1], 20, 30) == pytest.approx((1 / 6, 0, 5 / 6, 1))
    assert seen(kinds[1], 20, 30, do_pad=True) == pytest.approx((0, -1 / 4, 1, 5 / 4))
    assert seen(kinds[1], 30, 20, do_pad=True) == pytest.approx((-1 / 4, 0, 5 / 4, 1))


def packed(processor: Any, inputs: dict[str, torch.Tensor], patches: torch.Tensor, end: float) -> torch.Tensor:
    """The values of patches [tiles,16,1] in LLaVA-NeXT's own order, with the number ``end`` at the end of each row."""
    config = transformers.LlavaNextConfig(image_grid_pinpoints=processor.image_processor.image_grid_pinpoints)
    config.vision_config.image_size, config.vision_config.patch_size = 16, 4
    model = SimpleNamespace(config=config)
    found, _ = LlavaNextModel.pack_image_features(
        model, [patches], inputs["image_sizes"], "default", torch.tensor([end])
    )
    return found[0].flatten()


def brightness(processor: Any, form: str, picture: Image.Image) -> torch.Tensor:
    """[tokens], the brightness of each of the image's tokens in the pixels that the model gets."""
    inputs = processed(processor, picture, prompt_text(processor, TEXT))
    pixels = inputs["pixel_values"]
    if form == "qwen":
        return pixels.reshape(len(pixels) // 4, -1).mean(1)
    patches = avg_pool2d(pixels.reshape(-1, 3, 16, 16).mean(1, keepdim=True), 4).reshape(-1, 16, 1)
    if form == "llava":
        return patches.flatten()
    return packed(processor, inputs, patches, 1e3)


@pytest.mark.parametrize("size", [(40, 40), (40, 60), (64, 40), (32, 96), (90, 40)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_patches_lie_on_the_part_of_the_picture_that_they_show(
    processor: Any, form: str, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    height, width = size
    least = min(size)
    top, left = (height - least) // 2, (width - least) // 2  # of the square that LLaVA's crop leaves
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    half = least // 2
    y, x = top + corner[0] * half, left + corner[1] * half
    pixels[y : y + half, x : x + half] = 255
    picture = Image.fromarray(pixels)
    prompt = read_prompt(processor, picture, TEXT)
    values = brightness(processor, form, picture)
    assert len(values) == len(prompt.spans["image"])
    values = values - values.min()
    heat = on_image(prompt.maps, values, height, width)
    assert heat.shape == size
    used = np.concatenate([part.places.ravel() for part in prompt.maps])
    assert heat.sum() == pytest.approx(float(values[used].sum()))
    inside = pixels[..., 0] > 0
    assert heat[inside].mean() > 5 * heat[~inside].mean()
    assert np.corrcoef(heat.ravel(), inside.ravel())[0, 1] > (0.97 if form == "llava" else 0.8)
    if form == "next":  # the token at the end of each row shows nothing
        assert set(range(len(values))) - set(used.tolist()) == set(np.nonzero(values.numpy() > 900)[0].tolist())


def test_the_value_of_a_patch_is_spread_over_its_pixels(llava_processor: Any) -> None:
    prompt = read_prompt(llava_processor, noise(20, 30), TEXT)
    values = np.zeros(16)
    values[1 * 4 + 2] = 50  # second row, third column, of patches 5 points wide from the fifth column on
    heat = on_image(prompt.maps, values, 20, 30)
    expected = np.zeros((20, 30))
    expected[5:10, 5 + 10 : 5 + 15] = 2
    np.testing.assert_allclose(heat, expected, atol=1e-12)
    np.testing.assert_allclose(
        on_image(prompt.maps, torch.tensor(values, requires_grad=True), 20, 30), expected, atol=1e-12
    )
    np.testing.assert_allclose(on_image(prompt.maps, torch.tensor(values).bfloat16(), 20, 30), expected, atol=1e-12)
    # Also on a larger copy of the picture.
    np.testing.assert_allclose(
        on_image(prompt.maps, values, 40, 60), np.kron(expected, np.ones((2, 2))) / 4, atol=1e-12
    )


def test_two_maps_add_up(next_processor: Any) -> None:
    prompt = read_prompt(next_processor, noise(32, 32), TEXT)
    coarse, fine = prompt.maps
    assert coarse.places.tolist() == np.arange(16).reshape(4, 4).tolist()
    assert fine.places.tolist() == (16 + np.arange(8)[:, None] * 9 + np.arange(8)).tolist()
    values = np.zeros(16 + 8 * 9)
    values[[0, 16, 24]] = 64, 16, 1e6  # the first of each, and the end of a row
    heat = on_image(prompt.maps, values, 32, 32)
    expected = np.zeros((32, 32))
    expected[:8, :8] += 1
    expected[:4, :4] += 1
    np.testing.assert_allclose(heat, expected, atol=1e-12)


@given(
    height=st.integers(1, 40), width=st.integers(1, 40), h=st.integers(1, 9), w=st.integers(1, 9),
    cut=st.tuples(*[st.floats(0, 0.4)] * 4), seed=st.integers(0, 9),
)  # fmt: skip
def test_the_sum_of_values_is_preserved(
    height: int, width: int, h: int, w: int, cut: tuple[float, float, float, float], seed: int
) -> None:
    places = np.random.default_rng(seed).permutation(h * w).reshape(h, w)
    values = np.random.default_rng(seed).normal(size=h * w)
    box = (cut[0], cut[1], 1 - cut[2], 1 - cut[3])
    heat = on_image((PatchMap(places, box),), values, height, width)
    assert heat.sum() == pytest.approx(values.sum(), abs=1e-9)
    ones = on_image((PatchMap(places, (0.0, 0.0, 1.0, 1.0)),), np.ones(h * w), height, width)
    np.testing.assert_allclose(ones, h * w / (height * width))


@given(height=st.integers(4, 200), width=st.integers(4, 200))
def test_rows_of_llava_next_are_as_long_as_in_the_model(next_processor: Any, height: int, width: int) -> None:
    picture = Image.new("RGB", (width, height))
    made = processed(next_processor, picture, prompt_text(next_processor, TEXT))
    count = int((made["input_ids"] == next_processor.image_token_id).sum())
    maps = patch_maps(next_processor, picture, made, count)
    ends = packed(next_processor, made, torch.zeros(made["pixel_values"].shape[1], 16, 1), 1.0).nonzero()[:, 0].tolist()
    shown = [int(i) for part in maps for i in part.places.ravel()]
    assert sorted([*shown, *ends]) == list(range(count))
    if len(maps) == 2:
        assert (maps[1].places[:, -1] + 1).tolist() == ends
    else:  # so long and thin that its tiles are all padding
        assert max(height, width) > 4 * min(height, width)


def onevision(tokens: int = 16) -> Any:
    """The parts of LLaVA-OneVision's processor that are used; the whole needs a processor of videos."""

    class Processor(SimpleNamespace):
        _get_unpadded_features = transformers.LlavaOnevisionProcessor._get_unpadded_features

    pinpoints = [[16 * i, 16 * j] for i in range(1, 7) for j in range(1, 7)]
    return Processor(
        num_image_tokens=tokens, vision_aspect_ratio="anyres_max_9", vision_feature_select_strategy="full",
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints),
    )  # fmt: skip


def test_onevision_has_the_maps_of_llava_next_and_shrinks_those_with_too_many_patches() -> None:
    picture = Image.new("RGB", (32, 32))
    made = {"pixel_values": torch.zeros(1, 5, 3, 16, 16), "image_sizes": torch.tensor([[32, 32]])}
    coarse, fine = patch_maps(onevision(), picture, made, 16 + 8 * 9)
    assert (coarse.places.shape, fine.places.shape) == ((4, 4), (8, 8))
    assert fine.places[1, 0] == 16 + 9
    picture = Image.new("RGB", (96, 96))
    made = {"pixel_values": torch.zeros(1, 37, 3, 16, 16), "image_sizes": torch.tensor([[96, 96]])}
    coarse, fine = patch_maps(onevision(), picture, made, 16 + 12 * 13)  # 24 × 24 would be four times 9 · 16
    assert fine.places.shape == (12, 12)
    assert patch_maps(onevision(), picture, made, 16 + 12 * 13 + 1) == ()


def test_pixtrals_map_is_the_whole_picture_in_its_shape() -> None:
    processor = SimpleNamespace(patch_size=4, spatial_merge_size=2, image_processor=None)
    made = {"pixel_values": torch.zeros(1, 3, 24, 16), "image_sizes": torch.tensor([[24, 16]])}
    (found,) = patch_maps(processor, Image.new("RGB", (15, 23)), made, 6)
    assert (found.places.tolist(), found.box) == ([[0, 1], [2, 3], [4, 5]], (0, 0, 1, 1))


def test_an_unknown_grid_has_no_map(llava_processor: Any) -> None:
    picture = noise(16, 16)
    for pixels, count in (((1, 3, 16, 16), 15), ((2, 3, 16, 16), 16), ((1, 2, 3, 16, 16), 16)):
        assert patch_maps(llava_processor, picture, {"pixel_values": torch.zeros(pixels)}, count) == ()
    grid = {"image_grid_thw": torch.tensor([[2, 4, 4]])}  # two pictures in time
    assert patch_maps(SimpleNamespace(image_processor=SimpleNamespace(merge_size=2)), picture, grid, 8) == ()
    with pytest.raises(
        ValueError, match="maps: expected at least one, got none: it is unknown where this model's image tokens lie"
    ):
        on_image((), np.zeros(16), 4, 4)
