"""Tiny vision-language models of transformers with random weights: their text decoders against eager attention."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import symground
import symground as sg
from benchmarks.common.twins import twins
from symground.models import mixers
from symground.models.architectures.attention import NAME

IMAGE = 99
_TEXT = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
_TOWER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
_TILES = [[8, 16], [16, 8], [16, 16]]
_QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": 98, "vision_start_token_id": 97, "vision_end_token_id": 96}
_QWEN_TOWER = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": list(sections), "rope_theta": 1e4, **more}


def _clip() -> Any:
    return transformers.CLIPVisionConfig(**_TOWER, projection_dim=8)


def _siglip() -> Any:
    return transformers.SiglipVisionConfig(**_TOWER)


def _pixels(*shape: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"pixel_values": torch.randn(2, *shape)}


def _tiles() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 3, 8, 8), "image_sizes": torch.tensor([[8, 16], [8, 16]])}


def _grid() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2 * 16, 3 * 2 * 16), "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]])}


class Family(NamedTuple):
    kind: str
    """The prefix of transformers' classes."""
    config: Callable[[], dict[str, Any]]
    images: Callable[[], dict[str, Tensor]]
    """The inputs of two images."""
    tokens: int
    """The number of tokens of each image."""


FAMILIES = {
    "LLaVA-1.5": Family(
        "Llava",
        lambda: {"vision_config": _clip(), "text_config": transformers.LlamaConfig(**_TEXT), "image_token_id": IMAGE,
                 "vision_feature_layer": -1},
        _pixels(3, 8, 8), 4,
    ),
    "LLaVA-NeXT": Family(
        "LlavaNext",
        lambda: {"vision_config": _clip(), "text_config": transformers.MistralConfig(**_TEXT, sliding_window=9),
                 "image_token_id": IMAGE, "vision_feature_layer": -1, "image_grid_pinpoints": _TILES},
        _tiles, 14,
    ),
    "LLaVA-OneVision": Family(
        "LlavaOnevision",
        lambda: {"vision_config": _siglip(), "text_config": transformers.Qwen2Config(**_TEXT),
                 "image_token_id": IMAGE, "video_token_id": 98, "vision_feature_layer": -1,
                 "image_grid_pinpoints": _TILES},
        _tiles, 14,
    ),
    "Qwen2-VL": Family(
        "Qwen2VL",
        lambda: {"text_config": {**_TEXT, "rope_parameters": _rope(1, 1, 2)}, **_QWEN_IDS,
                 "vision_config": {**_QWEN_TOWER, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}},
        _grid, 4,
    ),
    "Qwen2.5-VL": Family(
        "Qwen2_5_VL",
        lambda: {"text_config": {**_TEXT, "rope_parameters": _rope(1, 1, 2)}, **_QWEN_IDS,
                 "vision_config": {**_QWEN_TOWER, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24,
                                   "window_size": 16, "fullatt_block_indexes": [1]}},
        _grid, 4,
    ),
    "Qwen3-VL": Family(
        "Qwen3VL",
        lambda: {"text_config": {**_TEXT, "head_dim": 8, "rope_parameters": _rope(2, 1, 1, mrope_interleaved=True)},
                 **_QWEN_IDS,
                 "vision_config": {**_QWEN_TOWER, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24,
                                   "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}},
        _grid, 4,
    ),
    "InternVL": Family(
        "InternVL",
        lambda: {"text_config": transformers.Qwen2Config(**_TEXT), "image_token_id": IMAGE,
                 "vision_config": transformers.InternVLVisionConfig(**{**_TOWER, "image_size": [8, 8],
                                                                       "patch_size": [2, 2]})},
        _pixels(3, 8, 8), 4,
    ),
    "Idefics3": Family(
        "Idefics3",
        lambda: {"text_config": transformers.LlamaConfig(**_TEXT), "image_token_id": IMAGE, "scale_factor": 2,
                 "vision_config": {**_TOWER, "patch_size": 2}},
        _pixels(1, 3, 8, 8), 4,
    ),
    "SmolVLM": Family(
        "SmolVLM",
        lambda: {"text_config": transformers.LlamaConfig(**_TEXT), "image_token_id": IMAGE, "scale_factor": 2,
                 "vision_config": {**_TOWER, "patch_size": 2}},
        _pixels(1, 3, 8, 8), 4,
    ),
    "Gemma-3 with images": Family(
        "Gemma3",
        lambda: {"text_config": transformers.Gemma3TextConfig(**_TEXT, head_dim=8, sliding_window=9,
                                                              layer_types=["sliding_attention", "full_attention"]),
                 "vision_config": _siglip(), "image_token_index": IMAGE, "mm_tokens_per_image": 4},
        _pixels(3, 8, 8), 4,
    ),
    "PaliGemma": Family(
        "PaliGemma",
        lambda: {"text_config": transformers.GemmaConfig(**_TEXT, head_dim=8), "projection_dim": 32,
                 "vision_config": transformers.SiglipVisionConfig(**_TOWER, projection_dim=8),
                 "image_token_index": IMAGE},
        _pixels(3, 8, 8), 4,
    ),
}  # fmt: skip
TARGETS = torch.tensor([5, 7])


def pair(family: Family) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model under transformers' eager attention, and a copy to attach."""
    config = getattr(transformers, f"{family.kind}Config")(**family.config())
    kind = getattr(transformers, f"{family.kind}ForConditionalGeneration")
    return twins(kind, config)


def batch(family: Family, side: str | None) -> dict[str, Tensor]:
    """Two questions, each with an image; the first has two tokens of padding if ``side`` is set."""
    torch.manual_seed(1)
    ids = torch.randint(1, 90, (2, family.tokens + 8))
    mask = torch.ones_like(ids)
    place = slice(4, 4 + family.tokens)
    ids[:, place] = IMAGE
    images = family.images()
    if "image_grid_thw" in images:
        ids[:, 3], ids[:, 4 + family.tokens] = 97, 96
    if side == "left":
        ids[0, :2], mask[0, :2] = 0, 0
    if side == "right":
        ids[0, -2:], mask[0, -2:] = 0, 0
    if "image_grid_thw" in images:
        images["mm_token_type_ids"] = (ids == IMAGE).long()
    if family.kind == "Gemma3":  # its patches see each other
        images["token_type_ids"] = (ids == IMAGE).long()
    return {"input_ids": ids, "attention_mask": mask, **images}


def places(model: PreTrainedModel, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The positions for eager attention; Qwen's models compute their own."""
    if hasattr(model.base_model, "get_rope_index"):
        return {}
    return {"position_ids": (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_saliency_are_eagers(family: Family, side: str) -> None:
    eager, twin = pair(family)
    ours, given = sg.attach(twin), batch(family, side)
    valid = given["attention_mask"].bool()
    out = eager(**given, **places(eager, given), output_attentions=True)
    with torch.no_grad():
        logits = ours(**given).logits
    torch.testing.assert_close(logits[valid], out.logits[valid], atol=1e-4, rtol=1e-4)
    p = (valid * torch.arange(valid.shape[1])).amax(-1)
    surprisal = -out.logits[torch.arange(2), p].log_softmax(-1)[torch.arange(2), TARGETS]
    gradients = torch.autograd.grad(surprisal.sum(), out.attentions)
    signed = torch.stack([(a * g) for a, g in zip(out.attentions, gradients, strict=True)], 1).detach()  # [B,L,H,T,T]
    traced = sg.trace(ours, targets=TARGETS, rows=True, **given)
    np.testing.assert_allclose(traced.surprisal, surprisal.detach(), atol=1e-4, rtol=1e-4)
    seen = valid[:, None, :, None].numpy()  # rows of padding are not compared
    np.testing.assert_allclose(traced.saliency * seen, signed.sum(2).abs().numpy() * seen, atol=1e-5, rtol=1e-3)
    rows = torch.stack([signed[i, :, :, p[i]] for i in range(2)])
    np.testing.assert_allclose(traced.rows, rows, atol=1e-5, rtol=1e-3)
    # Without groups, the image is the only group.
    assert traced.key_group.values.tolist() == ["image"]
    image = (given["input_ids"] == IMAGE)[:, None, None]
    flow = traced.flow.sel(query_group="prediction", key_group="image")
    np.testing.assert_allclose(flow, (rows.abs() * image).sum(-1), atol=1e-5, rtol=1e-3)
    shares = (flow / traced.row_total.sel(query_group="prediction"))[0].values
    assert sg.find_heads(traced, threshold=0.3)[0] == set(zip(*np.nonzero(shares >= 0.3), strict=True))


def test_the_tower_keeps_its_attention_and_a_checkpoint_says_nothing_of_ours(family: Family) -> None:
    _, twin = pair(family)
    towers = [m for m in twin.modules() if isinstance(m, PreTrainedModel) and m.config is not twin.config]
    before = {m: m.config._attn_implementation for m in towers}
    ours = sg.attach(twin)
    changed = {m for m in towers if m.config._attn_implementation != before[m]}
    assert changed
    assert all(m.config._attn_implementation == NAME for m in changed)
    assert all(m.config is ours.get_decoder().config for m in changed)
    assert len(mixers(ours)) == 2
    with pytest.raises(ValueError, match=r"symground never builds the attention matrix; symground\.attention"):
        ours(**batch(family, None), output_attentions=True)


def test_a_batch_is_its_single_examples(family: Family) -> None:
    _, twin = pair(family)
    ours, given = sg.attach(twin), batch(family, "left")
    images = len(given["pixel_values"]) // 2
    alone = {n: v[images:] if n == "pixel_values" else v[1:] for n, v in given.items()}
    first = {n: v[:images] if n == "pixel_values" else v[:1] for n, v in given.items()}
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if name in first:
            first[name] = first[name][:, 2:]
    with torch.no_grad():
        together = ours(**given).logits
        torch.testing.assert_close(together[1], ours(**alone).logits[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together[0, 2:], ours(**first).logits[0], atol=1e-4, rtol=1e-4)
    both = sg.trace(ours, targets=TARGETS, **given)
    one = sg.trace(ours, targets=TARGETS[:1], **first)
    np.testing.assert_allclose(both.saliency[0, :, 2:, 2:], one.saliency[0], atol=1e-5, rtol=1e-3)
    if images == 1:  # inputs with one row per example can be split into passes
        apart = sg.trace(ours, targets=TARGETS, batch_size=1, **given)
        np.testing.assert_allclose(apart.flow, both.flow, atol=1e-5, rtol=1e-3)
    else:
        with pytest.raises(ValueError, match=r"pixel_values: expected its first dimension .* 2 examples .* batch_size"):
            sg.trace(ours, targets=TARGETS, batch_size=1, **given)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_is_eagers_and_with_a_head_silenced_step_by_step(family: Family, cache: str) -> None:
    eager, twin = pair(family)
    ours, given = sg.attach(twin), batch(family, "left")
    how = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": cache, "disable_compile": True,
           "suppress_tokens": list(range(96, 101))}  # fmt: skip
    assert eager.generate(**given, **how).tolist() == ours.generate(**given, **how).tolist()
    half = len(given["pixel_values"]) // 2
    one = {n: v[half:] if n == "pixel_values" else v[1:] for n, v in given.items()}
    with sg.ablate(ours, [(0, 1), (1, 2)]), torch.no_grad():
        found = ours.generate(**one, **how)
        for _ in range(6):
            chosen = ours(**one, use_cache=False).logits[:, -1:, :96].argmax(-1)
            for name, value in (
                ("input_ids", chosen),
                ("attention_mask", 1),
                ("mm_token_type_ids", 0),
                ("token_type_ids", 0),
            ):
                if name in one:
                    more = torch.full_like(chosen, value) if isinstance(value, int) else value
                    one[name] = torch.cat([one[name], more], 1)
    assert found.tolist() == one["input_ids"].tolist()


def test_checkpointing_and_half_precision_give_the_same(family: Family) -> None:
    eager, twin = pair(family)
    ours, given = sg.attach(twin), batch(family, "left")
    plain = sg.trace(ours, targets=TARGETS, rows=True, **given)
    again = sg.trace(ours, targets=TARGETS, rows=True, checkpoint=True, **given)
    for name in ("surprisal", "saliency", "rows", "flow", "matrix_total"):
        np.testing.assert_allclose(again[name], plain[name], atol=1e-6, rtol=1e-4, err_msg=name)
    # The bound is the error of the same model under eager attention at the same precision.
    half = {n: v.bfloat16() if v.is_floating_point() else v for n, v in given.items()}
    exact = plain.surprisal.values
    ours.bfloat16(), eager.bfloat16()
    with torch.no_grad():
        out = eager(**half, **places(eager, given)).logits[:, -1].double().log_softmax(-1)
    error = abs(-out[torch.arange(2), TARGETS].numpy() - exact).max()
    traced = sg.trace(ours, targets=TARGETS, **half)
    assert abs(traced.surprisal.values - exact).max() <= 2 * error + 0.02
    assert float(np.linalg.norm(traced.flow - plain.flow) / np.linalg.norm(plain.flow)) < 0.25


def test_loaded_with_our_attention_by_its_name(tmp_path: Path) -> None:
    """The vision tower then has this attention too, and its output is the same."""
    eager, _ = pair(FAMILIES["LLaVA-1.5"])
    eager.save_pretrained(tmp_path)
    ours = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=NAME).eval()
    given = batch(FAMILIES["LLaVA-1.5"], "left")
    with torch.no_grad():
        expected, found = (m(**given, **places(eager, given)).logits for m in (eager, ours))
    valid = given["attention_mask"].bool()
    torch.testing.assert_close(found[valid], expected[valid], atol=1e-4, rtol=1e-4)
    assert sg.trace(sg.attach(ours), targets=TARGETS, **given).flow.sizes["layer"] == 2


def test_the_documented_families_are_the_tested_ones() -> None:
    page = (Path(symground.__file__).resolve().parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
    parts = re.split(r"^## ", page, flags=re.M)
    assert set(re.findall(r"^\| ([^|-]+[^|]*?) \|", parts[1], re.M)[1:]) == set(FAMILIES)


@pytest.mark.parametrize("name", ["LLaVA-1.5", "Qwen2-VL"])
def test_means_of_heads_over_questions_with_pictures(name: str) -> None:
    """The reference is what a processor returns, in which Qwen's patches are not as many as the examples."""
    eager, twin = pair(FAMILIES[name])
    ours, given = sg.attach(twin), batch(FAMILIES[name], "right")
    valid = given["attention_mask"].bool()
    projection = next(m for n, m in eager.named_modules() if n.endswith("language_model.layers.1.self_attn.o_proj"))
    kept: list[Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        eager(**given)
    hook.remove()
    mean = kept[0].unflatten(-1, (4, 8))[valid][:, 2].mean(0)

    def replaced(_: torch.nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        heads = args[0].unflatten(-1, (4, 8)).clone()
        heads[:, :, 2] = mean
        return (heads.flatten(-2),)

    projection.register_forward_pre_hook(replaced)
    with torch.no_grad(), sg.ablate(ours, [(1, 2)], "mean", given):
        found = ours(**given).logits[valid]
    with torch.no_grad():
        torch.testing.assert_close(found, eager(**given).logits[valid], atol=1e-4, rtol=1e-4)
