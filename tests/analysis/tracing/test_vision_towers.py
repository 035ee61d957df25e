"""Vision towers beside text decoders: both traced, against transformers' eager attention and autograd."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import transformers
from transformers import AttentionInterface, PreTrainedModel, vision_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_vl.modeling_qwen2_vl import eager_attention_forward as qwen2_vl_eager

import symground as sg
from benchmarks.common.twins import twins
from tests.models.attachment.test_vision_language import FAMILIES, IMAGE, TARGETS, batch, pair, places

#: name → how many pictures or tiles an example has
TOWERS = {"LLaVA-1.5": 1, "InternVL": 1, "PaliGemma": 1, "Gemma-3 with images": 1, "LLaVA-NeXT": 3}


def eager_attentions(tower: PreTrainedModel, kept: list[torch.Tensor]) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that keep the weights that each attention of a tower returns."""

    def keep(module: torch.nn.Module, args: object, output: object) -> None:
        assert isinstance(output, tuple)
        kept.append(output[1])

    return [m.register_forward_hook(keep) for m in tower.modules() if type(m).__name__.endswith("Attention")]


@pytest.mark.parametrize("name", TOWERS)
def test_both_parts_are_eagers(name: str) -> None:
    eager, twin = pair(FAMILIES[name])
    ours, given = sg.attach(twin, parts=("text", "vision")), batch(FAMILIES[name], "left")
    tower, images = eager.get_encoder(modality="image"), TOWERS[name]
    kept: list[torch.Tensor] = []
    hooks = eager_attentions(tower, kept)
    out = eager(**given, **places(eager, given), output_attentions=True)
    for hook in hooks:
        hook.remove()
    p = given["attention_mask"].shape[1] - 1
    surprisal = -out.logits[torch.arange(2), p].log_softmax(-1)[torch.arange(2), TARGETS]
    flat = [*out.attentions, *kept]
    gradients = torch.autograd.grad(surprisal.sum(), flat, allow_unused=True)
    # Those without a gradient are of a pooling head, which no text reads.
    signed = [(a * g).detach() for a, g in zip(flat, gradients, strict=True) if g is not None]
    of_text, of_tower = signed[: len(out.attentions)], signed[len(out.attentions) :]
    for batch_size in (2, 1):
        traced = sg.trace(ours, targets=TARGETS, rows=True, batch_size=batch_size, **given)
        np.testing.assert_allclose(traced.surprisal, surprisal.detach(), atol=1e-4, rtol=1e-4)
        seen = given["attention_mask"].bool()[:, None, :, None].numpy()
        expected = torch.stack([s.sum(1).abs() for s in of_text], 1).detach() * seen
        np.testing.assert_allclose(traced.saliency * seen, expected, atol=1e-5, rtol=1e-3)
        assert traced.vision_saliency.dims == ("example", "image", "vision_layer", "patch_query", "patch")
        found = traced.vision_saliency.values.reshape(2 * images, *traced.vision_saliency.shape[2:])
        np.testing.assert_allclose(
            found, torch.stack([s.sum(1).abs() for s in of_tower], 1).detach(), atol=1e-5, rtol=1e-3
        )
        total = torch.stack([s.abs().sum((-1, -2)) for s in of_tower], 1).detach()
        found = traced.vision_matrix_total.values.reshape(2 * images, len(of_tower), -1)[..., : total.shape[2]]
        np.testing.assert_allclose(found, total, atol=1e-5, rtol=1e-3)
    again = sg.trace(ours, targets=TARGETS, checkpoint=True, **given)
    np.testing.assert_allclose(again.vision_saliency, traced.vision_saliency, atol=1e-6, rtol=1e-4)
    layers = len(of_text)
    assert traced.layer.values.tolist() == list(range(layers))
    assert traced.vision_layer.values.tolist() == list(range(layers, layers + len(of_tower)))
    assert set(traced.part.values) == {"text"}
    assert set(traced.vision_part.values) == {"vision"}
    assert "image" in traced.key_group.values
    patches = traced.sizes["patch"]
    side = int(patches**0.5)
    assert traced.patch_row.values[-1] == traced.patch_column.values[-1] == side - 1
    assert (traced.patch_row.values == -1).sum() == patches - side * side  # the class token


def test_a_silenced_head_of_the_tower_and_what_it_does_not_take() -> None:
    eager, twin = pair(FAMILIES["LLaVA-1.5"])
    ours, given = sg.attach(twin, parts=("text", "vision")), batch(FAMILIES["LLaVA-1.5"], None)
    tower = eager.get_encoder(modality="image")
    attention = next(m for m in tower.modules() if type(m).__name__.endswith("Attention"))
    with torch.no_grad():
        before = ours(**given).logits
        with sg.ablate(ours, [(2, 1)]):
            found = ours(**given).logits
        attention.out_proj.weight[:, attention.head_dim : 2 * attention.head_dim] = 0
        expected = eager(**given).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, before, atol=1e-3)
    text = sg.trace(ours, given["input_ids"][:, -4:], TARGETS)
    assert "vision_saliency" not in text  # no picture was given
    assert [mixer.layer for mixer in sg.models.mixers(ours)] == [0, 1]  # those that probes and sweeps ask
    sg.attach(ours)  # stays as it is
    assert "vision_saliency" in sg.trace(ours, targets=TARGETS, **given)
    sg.attach(ours, parts=("text",))
    assert "vision_saliency" not in sg.trace(ours, targets=TARGETS, **given)
    sg.detach(ours)
    assert ours.get_encoder(modality="image").config._attn_implementation != "symground"


def test_parts_that_a_model_lacks_are_named() -> None:
    _, vlm = pair(FAMILIES["LLaVA-1.5"])
    for parts in ("vision", ("vision",), ("text", "audio"), ()):
        with pytest.raises(ValueError, match=r'parts: expected \("text",\) or \("text", "vision"\), got'):
            sg.attach(vlm, parts=parts)
    text = vlm.model.language_model
    with pytest.raises(ValueError, match="parts: LlamaModel has no vision tower beside a text decoder"):
        sg.attach(text, parts=("text", "vision"))


PACKED = ("Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL")


def pictures(name: str, grids: list[list[int]], each: int = 1) -> dict[str, torch.Tensor]:
    """Questions about ``each`` of the pictures, which have grids of patches of their own; padding on the left."""
    torch.manual_seed(1)
    texts = []
    for n in range(0, len(grids), each):
        text = [torch.randint(1, 90, (3,))]
        for t, h, w in grids[n : n + each]:
            text += [torch.tensor([97] + [IMAGE] * (t * h * w // 4) + [96]), torch.randint(1, 90, (2,))]
        texts.append(torch.cat(text))
    length = max(map(len, texts))
    ids = torch.stack([torch.nn.functional.pad(text, (length - len(text), 0)) for text in texts])
    patches = sum(t * h * w for t, h, w in grids)
    return {
        "input_ids": ids, "attention_mask": (ids != 0).long(), "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(patches, 96), "image_grid_thw": torch.tensor(grids),
    }  # fmt: skip


def drawn_grids(seed: int) -> tuple[list[list[int]], int]:
    """Grids of one to three pictures in each of one to three examples, and how many an example has."""
    rng = random.Random(seed)
    examples, each = rng.randint(1, 3), rng.randint(1, 3)
    return [[1, 2 * rng.randint(1, 4), 2 * rng.randint(1, 4)] for _ in range(examples * each)], each


_ALIKE, _WINDOWS = [[1, 4, 4], [1, 4, 4]], [[1, 4, 8], [1, 6, 6]]


@pytest.mark.parametrize(
    ("grids", "each"), [(_ALIKE, 1), ([[1, 4, 6], [1, 6, 4]], 1), (_WINDOWS, 1), *map(drawn_grids, range(4))], ids=str
)
@pytest.mark.parametrize("name", PACKED)
def test_pictures_in_one_row_of_patches_are_eagers(name: str, grids: list[list[int]], each: int) -> None:
    """Eager attention gives one matrix for each picture or window, in order; here they are put into the picture's."""
    eager, twin = pair(FAMILIES[name])
    ours, given = sg.attach(twin, parts=("text", "vision")), pictures(name, grids, each)
    examples, targets = len(grids) // each, torch.tensor([5, 7, 9])[: len(grids) // each]
    tower = eager.get_encoder(modality="image")
    kept: list[torch.Tensor] = []
    attentions = [m for m in tower.modules() if type(m).__name__.endswith("Attention")]
    own = {id(m.config) for m in attentions}
    assert len(own) == 1
    seen: list[torch.nn.Module] = []

    def keep(module: torch.nn.Module, *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        out, weights = eager_attention_forward(module, *args, **kwargs)
        kept.append(weights)
        seen.append(module)
        return out, weights

    eager_attention_forward = ALL_ATTENTION_FUNCTIONS.get_interface("eager", qwen2_vl_eager)
    AttentionInterface.register("kept", keep)
    attentions[0].config._attn_implementation_internal = "kept"
    out = eager(**given, output_attentions=True)
    surprisal = -out.logits[:, -1].log_softmax(-1)[torch.arange(examples), targets]
    flat = [*out.attentions, *kept]
    signed = [(a * g).detach() for a, g in zip(flat, torch.autograd.grad(surprisal.sum(), flat), strict=True)]
    layers = len(out.attentions)
    lengths = [t * h * w for t, h, w in grids]
    expected = torch.zeros(len(grids), len(attentions), 2, max(lengths), max(lengths))
    for n, attention in enumerate(attentions):
        parts = [s for s, module in zip(signed[layers:], seen, strict=True) if module is attention]
        picture, at = 0, 0
        for part in parts:
            size = part.shape[-1]
            expected[picture, n, :, at : at + size, at : at + size] = part[0]
            at += size
            if at == lengths[picture]:
                picture, at = picture + 1, 0
        assert picture == len(grids)
    traced = sg.trace(ours, targets=targets, rows=True, **given)
    np.testing.assert_allclose(traced.surprisal, surprisal.detach(), atol=1e-4, rtol=1e-4)
    valid = given["attention_mask"].bool()[:, None, :, None].numpy()
    wanted = torch.stack([s.sum(1).abs() for s in signed[:layers]], 1) * valid
    np.testing.assert_allclose(traced.saliency * valid, wanted, atol=1e-5, rtol=1e-3)
    expected = expected.unflatten(0, (examples, each))
    np.testing.assert_allclose(traced.vision_saliency, expected.sum(3).abs(), atol=1e-5, rtol=1e-3)
    np.testing.assert_allclose(traced.vision_matrix_total[..., :2], expected.abs().sum((-1, -2)), atol=1e-5, rtol=1e-3)
    if "2.5" in name and grids == _WINDOWS:  # one layer of it has windows
        assert len(kept) > 2 * len(attentions)
    order = vision_utils.get_vision_position_ids(given["image_grid_thw"], 2)
    if "2.5" in name:
        blocks, _ = vision_utils.get_vision_window_index(given["image_grid_thw"], 2, 16, 4)
        order = order.unflatten(0, (-1, 4))[blocks].flatten(0, 1)
    places_found = np.stack([traced.patch_row, traced.patch_column], -1).reshape(len(grids), max(lengths), 2)
    for found, end, length in zip(places_found, np.cumsum(lengths), lengths, strict=True):
        assert found[:length].tolist() == order[end - length : end].tolist()
        assert (found[length:] == -1).all()


@pytest.mark.parametrize("name", PACKED)
def test_a_head_of_such_a_tower_is_silenced_and_the_model_restored(name: str) -> None:
    eager, twin = pair(FAMILIES[name])
    given = pictures(name, [[1, 4, 8], [1, 6, 6]])
    ours = sg.attach(twin, parts=("text", "vision"))
    attention = next(m for m in eager.get_encoder(modality="image").modules() if type(m).__name__.endswith("Attention"))

    def logits(model: PreTrainedModel) -> torch.Tensor:
        found: torch.Tensor = model(**given).logits[given["attention_mask"].bool()]
        return found

    with torch.no_grad():
        whole = logits(eager)
        torch.testing.assert_close(logits(ours), whole, atol=1e-4, rtol=1e-4)
        attention.proj.weight[:, 8:16] = 0
        with sg.ablate(ours, [(2, 1)]):
            found = logits(ours)
        torch.testing.assert_close(found, logits(eager), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(found, whole, atol=1e-3)
    traced = [sg.trace(ours, targets=TARGETS, checkpoint=again, **given) for again in (False, True)]
    np.testing.assert_allclose(traced[1].vision_saliency, traced[0].vision_saliency, atol=1e-7, rtol=1e-4)
    text = sg.trace(ours, given["input_ids"][:, -4:] % 90 + 1, TARGETS)
    assert "vision_saliency" not in text
    sg.detach(ours)
    tower = ours.get_encoder(modality="image")
    assert "symground" not in tower.config._attn_implementation
    assert not tower._forward_pre_hooks
    with torch.no_grad():
        torch.testing.assert_close(logits(ours), whole, atol=1e-4, rtol=1e-4)


def test_several_pictures_and_frames_of_an_example() -> None:
    """Both pictures belong to one question; then their numbers differ between two questions, which is refused."""
    _, twin = pair(FAMILIES["Qwen2-VL"])
    ours, two = sg.attach(twin, parts=("text", "vision")), pictures("Qwen2-VL", [[1, 4, 4], [1, 4, 6]])
    one = {name: two[name].flatten()[None] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    valid = one["attention_mask"].bool()
    one = {name: x[valid][None] for name, x in one.items()}
    beside = {name: two[name] for name in ("pixel_values", "image_grid_thw")}
    traced = sg.trace(ours, targets=TARGETS[:1], **one, **beside)
    assert traced.vision_saliency.shape == (1, 2, 2, 24, 24)
    assert (traced.vision_saliency[0, 0].values[:, 16:] == 0).all()
    ids = torch.cat([one["input_ids"], one["input_ids"].roll(1)])
    ids[1][ids[1] == IMAGE] = 5
    with pytest.raises(ValueError, match="expected its first dimension to be that of 2 examples"):
        sg.trace(ours, ids, TARGETS, batch_size=1, **beside)
    three = {"image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 6], [1, 4, 4]]), "pixel_values": torch.randn(56, 96)}
    ids[1, :8] = torch.tensor([7, 97, IMAGE, IMAGE, IMAGE, IMAGE, 96, 8])
    with pytest.raises(ValueError, match="mix the same positions of each example once"):
        sg.trace(ours, ids, TARGETS, mm_token_type_ids=(ids == IMAGE).long(), **three)


def test_the_layers_after_the_one_that_is_read_are_0() -> None:
    """By default LLaVA reads the last layer of its tower but one, as its checkpoints do."""
    family = FAMILIES["LLaVA-1.5"]
    settings = {**family.config(), "vision_feature_layer": -2}
    eager, twin = pair(family._replace(config=lambda: settings))
    ours, given = sg.attach(twin, parts=("text", "vision")), batch(family, None)
    kept: list[torch.Tensor] = []
    hooks = eager_attentions(eager.get_encoder(modality="image"), kept)
    surprisal = -eager(**given).logits[:, -1].log_softmax(-1)[torch.arange(2), TARGETS]
    for hook in hooks:
        hook.remove()
    (gradient,) = torch.autograd.grad(surprisal.sum(), kept[0])
    for batch_size in (1, 2):
        traced = sg.trace(ours, targets=TARGETS, batch_size=batch_size, **given)
        expected = (kept[0] * gradient).sum(1).abs().detach()
        np.testing.assert_allclose(traced.vision_saliency[:, 0, 0], expected, atol=1e-5, rtol=1e-3)
        assert float(abs(traced.vision_saliency[:, 0, 1]).max()) == 0
        assert float(traced.vision_matrix_total[:, 0, 1, :2].max()) == 0


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_both_towers_of_a_similarity_are_eagers(kind: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    text = {**sizes, "vocab_size": 101, "max_position_embeddings": 32, "pad_token_id": 0, "eos_token_id": 2}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config={**sizes, "image_size": 8, "patch_size": 4}
    )
    eager, twin = twins(getattr(transformers, f"{kind}Model"), config)
    ours = sg.attach(twin, parts=("text", "vision"))
    given = {"input_ids": torch.randint(3, 101, (3, 6)), "pixel_values": torch.randn(3, 3, 8, 8)}
    towers = [eager.text_model, eager.vision_model]
    kept: list[list[torch.Tensor]] = [[], []]
    hooks = [hook for tower, into in zip(towers, kept, strict=True) for hook in eager_attentions(tower, into)]
    each = eager(**given).logits_per_image.diagonal()
    for hook in hooks:
        hook.remove()
    traced = sg.trace(ours, loss=lambda out: out.logits_per_image.diagonal(), **given)
    np.testing.assert_allclose(traced.loss, each.detach(), atol=1e-4, rtol=1e-4)
    for found, of_tower in zip((traced.saliency, traced.vision_saliency[:, 0]), kept, strict=True):
        of_layers = [a for a in of_tower if a is not None][:2]  # a pooling head's attention comes last
        gradients = torch.autograd.grad(each.sum(), of_layers, retain_graph=True)
        expected = torch.stack([(a * g).sum(1).abs() for a, g in zip(of_layers, gradients, strict=True)], 1).detach()
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["LLaVA-1.5", "Qwen2-VL"])
def test_other_numbers_of_pictures_in_other_examples_are_refused(name: str) -> None:
    """Two pictures of the first example and none of the second are as many as one of each."""
    _, twin = pair(FAMILIES[name])
    ours, given = sg.attach(twin, parts=("text", "vision")), batch(FAMILIES[name], None)
    ids = given["input_ids"]
    both = torch.cat([ids[0], ids[1][3:]])[None]
    none = torch.where(both == IMAGE, 5, both)
    uneven = {**given, "input_ids": torch.cat([both, none])}
    uneven["attention_mask"] = torch.ones_like(uneven["input_ids"])
    if "mm_token_type_ids" in given:
        uneven["mm_token_type_ids"] = (uneven["input_ids"] == IMAGE).long()
    with pytest.raises(ValueError, match="expected the same number of pictures in each example, since a vision tower"):
        sg.trace(ours, targets=TARGETS, **uneven)
    with pytest.raises(ValueError, match="layer 2 is of the vision tower, which reads pictures, not examples"):
        sg.ablate(ours, [[(2, 1)], []])
    with sg.ablate(ours, [[(0, 1)], []]), torch.no_grad():  # heads of the text
        ours(**given)


@pytest.mark.parametrize("name", ["LLaVA-1.5", "Gemma-3 with images", *PACKED])
def test_in_bfloat16_both_parts_are_those_in_float32(name: str) -> None:
    """Eager attention's own error in Qwen-VL's towers is 0.02 to 0.07 of the norm, by the weights that are drawn."""
    for seed in range(2):
        _, twin = pair(FAMILIES[name])
        torch.manual_seed(seed)
        for parameter in twin.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        ours = sg.attach(twin, parts=("text", "vision"))
        given = pictures(name, _WINDOWS) if name in PACKED else batch(FAMILIES[name], "left")
        exact = sg.trace(ours, targets=TARGETS, **given)
        half = {key: x.bfloat16() if x.is_floating_point() else x for key, x in given.items()}
        found = sg.trace(ours.bfloat16(), targets=TARGETS, **half)
        for of in ("vision_saliency", "saliency"):
            off = np.linalg.norm(found[of] - exact[of]) / np.linalg.norm(exact[of])
            assert off < 0.1, (of, seed)
