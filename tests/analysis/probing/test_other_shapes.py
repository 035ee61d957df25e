"""Questions about images to models that read each picture in its own shape: LLaVA-NeXT and Qwen2-VL."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import symground as sg
from symground.analysis import ImageQuestions
from symground.analysis.causal.silenced import behaviour
from symground.data import Question

TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def decoder(processor: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(processor.tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
    }  # fmt: skip


def next_config(processor: Any) -> Any:
    return transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**TOWER, image_size=16, patch_size=4, projection_dim=8),
        text_config=transformers.LlamaConfig(**decoder(processor)), image_token_id=processor.image_token_id,
        vision_feature_layer=-1, image_grid_pinpoints=processor.image_processor.image_grid_pinpoints,
    )  # fmt: skip


def qwen_config(processor: Any) -> Any:
    ids = processor.tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    return transformers.Qwen2VLConfig(
        text_config={**decoder(processor), "rope_parameters": rope},
        vision_config={"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
                       "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        image_token_id=processor.image_token_id, video_token_id=processor.video_token_id,
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
    )  # fmt: skip


OTHERS = {
    "next": (next_config, transformers.LlavaNextForConditionalGeneration),
    "qwen": (qwen_config, transformers.Qwen2VLForConditionalGeneration),
}


@pytest.fixture(params=OTHERS, scope="module")
def others(request: pytest.FixtureRequest, make_twins: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Models whose numbers of image tokens and tiles depend on the shape of the picture."""
    folder = tmp_path_factory.mktemp("shapes")
    asked = []
    for i, shape in enumerate([(16, 32), (20, 30), (24, 18), (16, 31), (40, 40), (12, 24)]):
        pixels = np.random.default_rng(i).integers(0, 255, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        word = ("zebra", "boat")[i % 2]
        text = f"{'Look again. ' * (i % 3)}Is there a {word} in the image?"
        asked.append(Question(str(folder / f"{i}.png"), text, ("yes", "no")[i % 2], word))
    processor = request.getfixturevalue(f"{request.param}_processor")
    config, kind = OTHERS[request.param]
    torch.manual_seed(0)
    eager = kind._from_config(config(processor), attn_implementation="eager").eval()
    for parameter in eager.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    twin = kind(copy.deepcopy(eager.config)).eval()
    twin.load_state_dict(eager.state_dict())
    return make_twins(sg.attach(twin), eager, processor), sg.image_questions(processor, asked)


def test_pictures_of_other_shapes_go_together(others: tuple[Any, ImageQuestions]) -> None:
    twins, asked = others
    assert len({len(prompt.spans["image"]) for prompt in asked.prompts}) > 2
    examples = asked.matched()
    assert len({twins.given(asked, i)["pixel_values"].shape[:2] for i in range(len(asked))}) > 1
    traced = sg.trace(twins.ours, asked, rows=True)
    apart = sg.trace(twins.ours, asked, rows=True, batch_size=1)
    for i, target in enumerate(examples.targets.tolist()):
        found = twins.one(twins.given(asked, i), target)
        p = len(found.ids) - 1
        assert examples.input_ids[i, : p + 1].tolist() == found.ids.tolist()
        for got in (traced, apart):
            np.testing.assert_allclose(got.surprisal[i], found.surprisals[p, target], atol=1e-4)
            np.testing.assert_allclose(got.rows[i, ..., : p + 1], found.signed[:, :, p], atol=1e-5)
        image = found.signed[:, :, p, list(asked.prompts[i].spans["image"])].abs().sum(-1)
        np.testing.assert_allclose(traced.flow[i].sel(query_group="prediction", key_group="image"), image, atol=1e-5)
        heat = asked.on_picture(i, traced.rows[i].sum(("layer", "head")))
        assert heat.shape == asked.picture(i).size[::-1]
    others_shown = asked.mismatched()
    mismatched = sg.trace(twins.ours, others_shown, batch_size=4)
    for i in range(len(asked)):
        expected = twins.scores(twins.given(asked, i, twins.picture_of(asked, others_shown, i)))[
            -1, examples.targets[i]
        ]
        np.testing.assert_allclose(mismatched.surprisal[i], expected, atol=1e-4)
    bare = behaviour(twins.ours, examples, [[]], batch_size=4)
    for i in range(len(asked)):
        inputs = twins.given(asked, i)
        expected = twins.of_context(inputs["input_ids"][0], twins.scores(inputs))
        assert bare.context[0, i] == pytest.approx(expected, abs=1e-4)


def test_pictures_of_other_shapes_are_refused_for_resampling(others: tuple[Any, ImageQuestions]) -> None:
    twins, asked = others
    shapes = [len(prompt.spans["image"]) for prompt in asked.prompts]
    alike = asked.take([i for i, n in enumerate(shapes) if n == shapes[0]])
    both = asked.take([shapes.index(n) for n in sorted({*shapes})])
    message = "resampling takes a head's output at the same position .* not all of the same number of tokens"
    with pytest.raises(ValueError, match=message):
        sg.intervene(twins.ours, both, draws=1, mode="resample")
    assert sg.intervene(twins.ours, alike, draws=1, mode="resample")["examples"].tolist() == [len(alike)] * 2
    with pytest.raises(ValueError, match=message), sg.ablate(twins.ours, [(0, 0)], "resample", both):
        pass
