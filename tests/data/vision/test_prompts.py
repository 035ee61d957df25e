"""Questions about images as ids: what stands where, what an answer begins with, and where a patch lies in a picture."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch.nn.functional import avg_pool2d
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from symground.data.vision.prompts import (
    PatchMap,
    Prompt,
    on_image,
    patch_maps,
    processed,
    prompt_text,
    read_image,
    read_prompt,
)

TEXT = "Is there a zebra in the image?"
SYSTEM = "You are a helpful assistant. "
FORMS = ("llava", "next", "qwen")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def processor(request: pytest.FixtureRequest, form: str) -> Any:
    return request.getfixturevalue(f"{form}_processor")


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def again(
    processor: Any, tokenizer: Any = None, template: str | None = None, **more: Any
) -> transformers.LlavaProcessor:
    """The LLaVA processor with another tokenizer or template."""
    settings = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1, **more}
    return transformers.LlavaProcessor(
        processor.image_processor, tokenizer or processor.tokenizer, patch_size=4,
        chat_template=template or processor.chat_template, **settings,
    )  # fmt: skip


def said_by(processor: Any, prompt: Prompt, name: str) -> str:
    return str(processor.tokenizer.decode([prompt.ids[i] for i in prompt.spans[name]]))


@pytest.mark.parametrize("size", [(24, 18), (20, 30), (16, 16)])
@pytest.mark.parametrize("system", [None, SYSTEM])
def test_every_part_is_where_its_text_is(processor: Any, form: str, system: str | None, size: tuple[int, int]) -> None:
    picture = noise(*size)
    prompt = read_prompt(processor, picture, TEXT, system=system, answer="Yes")
    given = processed(processor, picture, prompt_text(processor, TEXT, system))
    assert list(prompt.ids) == given["input_ids"][0].tolist()
    own = (given["input_ids"][0] == processor.image_token_id).nonzero()[:, 0].tolist()
    assert list(prompt.spans["image"]) == own
    assert list(prompt.spans) == ["system", "image", "question"]
    assert said_by(processor, prompt, "question") == TEXT
    turn = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n<|vision_start|>" if form == "qwen" else "{} USER: "
    written = {"qwen": "You are a helpful assistant.", "llava": "", "next": ""}[form] if system is None else system
    assert said_by(processor, prompt, "system") == turn.format(written).lstrip()
    places = [i for name in prompt.spans for i in prompt.spans[name]]
    assert len(places) == len(set(places))
    assert sum(part.places.size for part in prompt.maps) <= len(own)
    # What the model is to say first, as the processor itself would have it in a finished conversation.
    whole = processed(processor, picture, prompt_text(processor, TEXT, system, answer="Yes"))["input_ids"][0].tolist()
    assert whole[: len(prompt.ids)] == list(prompt.ids)
    assert prompt.answer == whole[len(prompt.ids)]
    assert processor.tokenizer.decode([prompt.answer]) in (" Yes", "Y", "Yes")


@pytest.mark.parametrize("said", ["The image", "Yes", "The image shows "])
def test_an_answer_that_has_begun_ends_the_prompt(processor: Any, said: str) -> None:
    picture = noise(20, 30)
    prompt = read_prompt(processor, picture, TEXT, said=said, system=SYSTEM)
    assert list(prompt.spans) == ["system", "image", "question", "answer"]
    assert said_by(processor, prompt, "answer").strip() == said.strip()
    assert said_by(processor, prompt, "question") == TEXT
    assert prompt.spans["answer"][-1] == len(prompt.ids) - 1
    bare = read_prompt(processor, picture, TEXT, system=SYSTEM)
    assert prompt.ids[: len(bare.ids)] == bare.ids
    assert bare.answer is prompt.answer is None


def test_what_comes_after_an_answer_that_has_begun(llava_processor: Any) -> None:
    decode = llava_processor.tokenizer.decode
    prompt = read_prompt(llava_processor, noise(16, 16), TEXT, said="A", answer="zebra")
    assert decode([prompt.answer]) == " zebra"
    prompt = read_prompt(llava_processor, noise(16, 16), TEXT, answer="zebra")
    assert decode([prompt.answer]) == " zebra"


@pytest.mark.parametrize("question", ["A", "ASSISTANT", "user", "Yes", "zebra", " a ", SYSTEM])
def test_a_question_is_found_though_its_words_stand_elsewhere_too(processor: Any, form: str, question: str) -> None:
    prompt = read_prompt(processor, noise(16, 16), question, said="Yes zebra", system=SYSTEM)
    assert said_by(processor, prompt, "question").strip() == question.strip()
    assert min(prompt.spans["question"]) > max(prompt.spans["image"])
    assert max(prompt.spans["question"]) < min(prompt.spans["answer"])
    after = processor.tokenizer.decode(prompt.ids[max(prompt.spans["question"]) + 1 :])
    assert after.strip().startswith("<|im_end|>" if form == "qwen" else "ASSISTANT:")


def test_a_question_may_stand_before_the_image(llava_processor: Any) -> None:
    template = "{{ messages[0]['content'][1]['text'] }}: <image> A:"
    processor = again(llava_processor, template=template)
    prompt = read_prompt(processor, noise(16, 16), TEXT)
    assert said_by(processor, prompt, "question").rstrip(":") == TEXT
    assert max(prompt.spans["question"]) < min(prompt.spans["image"])
    assert prompt.spans["system"] == ()


def with_bos(processor: Any) -> Any:
    """Its tokenizer with <s> before each text, as LLaVA's."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(processor.tokenizer.backend_tokenizer.to_str()), pad_token="<pad>",
        bos_token="<s>",
    )  # fmt: skip
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair=None, special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def test_what_opens_a_text_stands_there_once(llava_processor: Any) -> None:
    """By the tokenizer or by the template, and it counts to what stands before the image."""
    tokenizer = with_bos(llava_processor)
    plain = read_prompt(llava_processor, noise(16, 16), TEXT, answer="No", said="Yes")
    for template in (llava_processor.chat_template, "{{ bos_token }}" + llava_processor.chat_template):
        processor = again(llava_processor, tokenizer, template)
        prompt = read_prompt(processor, noise(16, 16), TEXT, answer="No", said="Yes")
        assert prompt.ids == (tokenizer.bos_token_id, *plain.ids)
        assert prompt.spans["system"][0] == 0
        assert {n: tuple(i - 1 for i in s) for n, s in prompt.spans.items() if n != "system"} == {
            n: s for n, s in plain.spans.items() if n != "system"
        }
        assert prompt.answer == plain.answer
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TEXT}]}]
        asked = read_prompt(processor, noise(16, 16), TEXT)
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        messages[0]["content"][0] = {"type": "image", "image": noise(16, 16)}
        given = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert prompt_text(processor, TEXT) == text
        assert given["input_ids"][0].tolist() == list(asked.ids)


def test_the_template_of_the_tokenizer_serves_where_the_processor_has_none(llava_processor: Any) -> None:
    tokenizer = with_bos(llava_processor)
    tokenizer.chat_template = llava_processor.chat_template
    processor = again(llava_processor, tokenizer)
    expected = read_prompt(processor, noise(16, 16), TEXT, answer="No")
    processor.chat_template = None
    found = read_prompt(processor, noise(16, 16), TEXT, answer="No")
    assert (found.ids, found.spans, found.answer) == (expected.ids, expected.spans, expected.answer)


def joined() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer to which words are nothing: what often stands together is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "<image>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["ASSISTANT: Yes "] * 50, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


QUESTION, ANSWER = "{{ messages[0]['content'][1]['text'] }}", "{{ messages[-1]['content'][0]['text'] }}"


@pytest.mark.parametrize(
    ("message", "template"),
    [
        (r"processor: expected one image token \(id 2\) in 'Is .*', found 0", QUESTION),
        (r"processor: expected one image token \(id 2\) .*, found 2", "<image><image>"),
        (
            r"processor: its chat template does not keep the question 'Is there a zebra in the image\?' as it is",
            "<image>{{ messages[0]['content'][1]['text'] | upper }}",
        ),
        ("does not keep the question", "<image> What is there?"),
        ("does not keep the question", "<image>{{ messages[0]['content'][1]['text'] | replace('a', '') }}"),
        (
            "processor: with the answer 'Yes' its chat template makes .*, which does not go on with it from ",
            f"<image>{QUESTION} A: {{% if add_generation_prompt %}}<think>{{% else %}}{ANSWER}{{% endif %}}",
        ),
        (  # there is no place to answer at
            r"its chat template makes .*, which does not go on with it from '<image>Is there a zebra in the image\?'",
            f"<image>{QUESTION}{{% if not add_generation_prompt %}} A: {ANSWER}{{% endif %}}",
        ),
    ],
)
def test_templates_that_hide_what_is_sought_are_refused(llava_processor: Any, message: str, template: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompt(again(llava_processor, template=template), noise(16, 16), TEXT, answer="Yes")


def test_processors_whose_ids_cannot_be_told_apart_are_refused(llava_processor: Any) -> None:
    picture = noise(16, 16)
    bare = again(llava_processor)
    bare.chat_template = None
    with pytest.raises(ValueError, match="processor: LlavaProcessor has no chat template; set processor.chat_template"):
        read_prompt(bare, picture, TEXT)
    slow = again(llava_processor, transformers.ByT5Tokenizer())
    with pytest.raises(ValueError, match="processor: expected a fast tokenizer, got ByT5Tokenizer"):
        read_prompt(slow, picture, TEXT)
    with pytest.raises(ValueError, match="processor: its tokenizer joins the answer 'Yes' with what stands before it"):
        read_prompt(again(llava_processor, joined()), picture, TEXT, answer="Yes")
    nameless = again(llava_processor)
    nameless.image_token_id = None
    with pytest.raises(ValueError, match=r"processor: expected one image token \(id None\)"):
        read_prompt(nameless, picture, TEXT)
    trimming = again(
        llava_processor,
        template="<image>{{ messages[0]['content'][1]['text'] }}\nA: {{ messages[-1]['content'][0]['text'] | lower }}",
    )
    with pytest.raises(
        ValueError, match="final message does not appear|does not keep the beginning 'Yes' of an answer"
    ):
        read_prompt(trimming, picture, TEXT, said="Yes")


class Changed:
    """A processor whose output is changed."""

    def __init__(self, processor: Any, change: Any) -> None:
        self._processor, self._change = processor, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, **given: Any) -> Any:
        found = self._processor(**given)
        return {**found, "input_ids": self._change(found["input_ids"])}


def test_ids_that_are_not_the_tokenizers_are_refused(llava_processor: Any) -> None:
    for change in (lambda ids: ids[:, 1:], lambda ids: ids[:, :-1], lambda ids: torch.cat([ids, ids[:, -1:]], 1)):
        with pytest.raises(ValueError, match="processor: the ids of Changed are not those of its tokenizer around"):
            read_prompt(Changed(llava_processor, change), noise(16, 16), TEXT)
    with pytest.raises(ValueError, match=r"processor: Changed leaves no token of the image \(id 2\) in the ids"):
        read_prompt(Changed(llava_processor, lambda ids: ids.masked_fill(ids == 2, 7)), noise(16, 16), TEXT)


def test_a_picture_that_is_not_there_or_none_is_named(tmp_path: Path) -> None:
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
            again(SimpleNamespace(**{**vars(llava_processor), "image_processor": kind(**sides)})), height, width
        )

    # Resized to more than is cut out.
    assert seen(kinds[0], 20, 30, size={"shortest_edge": 20}) == pytest.approx((7 / 30, 0.1, 23 / 30, 0.9))
    # Resized whole, whatever its shape.
    for how in ({"do_center_crop": False}, {}):
        assert seen(kinds[0], 20, 30, size={"height": 16, "width": 16}, **how) == (0, 0, 1, 1)
    assert seen(kinds[0], 20, 40, do_resize=False) == pytest.approx((0.3, 0.1, 0.7, 0.9))
    # Padded to a square first.
    assert seen(kinds[1], 20, 30) == pytest.approx((1 / 6, 0, 5 / 6, 1))
    assert seen(kinds[1], 20, 30, do_pad=True) == pytest.approx((0, -1 / 4, 1, 5 / 4))
    assert seen(kinds[1], 30, 20, do_pad=True) == pytest.approx((-1 / 4, 0, 5 / 4, 1))


def packed(processor: Any, given: dict[str, torch.Tensor], patches: torch.Tensor, end: float) -> torch.Tensor:
    """LLaVA-NeXT's own order of what its patches [tiles,16,1] show, with a number at the end of each row."""
    config = transformers.LlavaNextConfig(image_grid_pinpoints=processor.image_processor.image_grid_pinpoints)
    config.vision_config.image_size, config.vision_config.patch_size = 16, 4
    model = SimpleNamespace(config=config)
    found, _ = LlavaNextModel.pack_image_features(
        model, [patches], given["image_sizes"], "default", torch.tensor([end])
    )
    return found[0].flatten()


def brightness(processor: Any, form: str, picture: Image.Image) -> torch.Tensor:
    """Of each of the image's tokens, as the model is given it."""
    given = processed(processor, picture, prompt_text(processor, TEXT))
    pixels = given["pixel_values"]
    if form == "qwen":
        return pixels.reshape(len(pixels) // 4, -1).mean(1)
    patches = avg_pool2d(pixels.reshape(-1, 3, 16, 16).mean(1, keepdim=True), 4).reshape(-1, 16, 1)
    if form == "llava":
        return patches.flatten()
    return packed(processor, given, patches, 1e3)


@pytest.mark.parametrize("size", [(40, 40), (40, 60), (64, 40), (32, 96), (90, 40)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_what_is_bright_to_the_model_is_bright_in_the_picture(
    processor: Any, form: str, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    height, width = size
    least = min(size)
    top, left = (height - least) // 2, (width - least) // 2  # of what LLaVA's crop leaves
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


def test_a_patch_lies_on_its_own_points(llava_processor: Any) -> None:
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
    # In a larger drawing of the same picture too.
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
def test_sums_stay_what_they_are(
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
def test_nexts_rows_are_as_long_as_the_model_has_them(next_processor: Any, height: int, width: int) -> None:
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
    """What is asked of LLaVA-OneVision's processor, which wants one for videos."""

    class Processor(SimpleNamespace):
        _get_unpadded_features = transformers.LlavaOnevisionProcessor._get_unpadded_features

    pinpoints = [[16 * i, 16 * j] for i in range(1, 7) for j in range(1, 7)]
    return Processor(
        num_image_tokens=tokens, vision_aspect_ratio="anyres_max_9", vision_feature_select_strategy="full",
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints),
    )  # fmt: skip


def test_onevisions_maps_are_those_of_next_and_shrink_where_there_would_be_too_many() -> None:
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


def test_where_tokens_lie_in_no_known_grid_there_is_no_map(llava_processor: Any) -> None:
    picture = noise(16, 16)
    for pixels, count in (((1, 3, 16, 16), 15), ((2, 3, 16, 16), 16), ((1, 2, 3, 16, 16), 16)):
        assert patch_maps(llava_processor, picture, {"pixel_values": torch.zeros(pixels)}, count) == ()
    grid = {"image_grid_thw": torch.tensor([[2, 4, 4]])}  # two pictures in time
    assert patch_maps(SimpleNamespace(image_processor=SimpleNamespace(merge_size=2)), picture, grid, 8) == ()
    with pytest.raises(ValueError, match="maps: where this model's image tokens lie in the picture is not known"):
        on_image((), np.zeros(16), 4, 4)


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
