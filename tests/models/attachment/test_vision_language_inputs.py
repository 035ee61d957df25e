"""Vision-language models whose pictures, positions or vocabulary are not where others have them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import symground as sg
from benchmarks.common.twins import twins
from tests.models.attachment.test_vision_language import FAMILIES, IMAGE, TARGETS, batch, pair


@pytest.mark.filterwarnings("ignore:.*also mixes positions by")
@pytest.mark.parametrize("parts", [("text",), ("text", "vision")])
def test_a_model_that_does_not_run_on_words_alone_is_traced_with_its_pictures(parts: tuple[str, ...]) -> None:
    """BLIP-2 needs a picture; attaching cannot try it on words."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {
        "model_type": "opt",
        **sizes,
        "ffn_dim": 48,
        "vocab_size": 101,
        "word_embed_proj_dim": 32,
        "pad_token_id": 0,
    }
    config = transformers.Blip2Config(
        vision_config={**sizes, "intermediate_size": 48, "image_size": 8, "patch_size": 4},
        qformer_config={**sizes, "intermediate_size": 48, "encoder_hidden_size": 32, "vocab_size": 101},
        text_config={**text, "max_position_embeddings": 64}, num_query_tokens=4, image_token_index=100,
    )  # fmt: skip
    eager, twin = twins(transformers.Blip2ForConditionalGeneration, config)
    ours = sg.attach(twin, parts)
    ids = torch.randint(3, 90, (2, 9))
    ids[:, :4] = 100
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 8, 8)}
    out = eager(**given, output_attentions=True)
    surprisal = -out.logits[:, -1].log_softmax(-1)[torch.arange(2), TARGETS]
    attentions = out.language_model_outputs.attentions
    gradients = torch.autograd.grad(surprisal.sum(), attentions)
    signed = torch.stack([(a * g).sum(1).abs() for a, g in zip(attentions, gradients, strict=True)], 1).detach()
    traced = sg.trace(ours, targets=TARGETS, rows=True, **given)
    np.testing.assert_allclose(traced.surprisal, surprisal.detach(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(traced.saliency, signed, atol=1e-5, rtol=1e-3)
    assert ("vision_saliency" in traced) == ("vision" in parts)
    between = "Blip2QFormerMultiHeadAttention" if "vision" in parts else ""
    assert traced.attrs["untraced"] == between  # it mixes patches on their way to the words


@pytest.mark.parametrize("asked", ["targets", "loss"])
def test_placeholders_without_pictures_are_said(asked: str) -> None:
    _, twin = pair(FAMILIES["LLaVA-1.5"])
    ours, given = sg.attach(twin), batch(FAMILIES["LLaVA-1.5"], None)
    ids = given["input_ids"]
    how: dict[str, Any] = {"targets": TARGETS} if asked == "targets" else {"loss": lambda out: out.logits[:, -1, 5]}
    with pytest.warns(UserWarning, match=rf"{int((ids == IMAGE).sum())} tokens are placeholders of images, and no im"):
        sg.trace(ours, ids, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sg.trace(ours, **given, **how)
        sg.trace(ours, ids.clamp(max=90), **how)


def test_a_mask_of_ones_changes_no_positions_that_a_model_counts_by_itself() -> None:
    """Kosmos-2's begin after its padding id."""
    text = {"vocab_size": 101, "max_position_embeddings": 64, "embed_dim": 32, "layers": 2, "ffn_dim": 48}
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Kosmos2Config(
        text_config={**text, "attention_heads": 4}, vision_config={**tower, "image_size": 16, "patch_size": 8},
        latent_query_num=4,
    )  # fmt: skip
    eager, twin = twins(transformers.Kosmos2ForConditionalGeneration, config)
    ours, ids = sg.attach(twin), torch.randint(5, 90, (2, 11))
    where = torch.tensor([[0] + [1] * 4 + [0] * 6] * 2)
    image = {"pixel_values": torch.randn(2, 3, 16, 16), "image_embeds_position_mask": where}
    mask = torch.ones_like(ids)
    out = eager(input_ids=ids, attention_mask=mask, output_attentions=True, **image)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(input_ids=ids, attention_mask=mask, **image).logits, out.logits, atol=1e-4, rtol=1e-4
        )
    surprisal = -out.logits[torch.arange(2), -1].log_softmax(-1)[torch.arange(2), TARGETS]
    gradients = torch.autograd.grad(surprisal.sum(), out.attentions)
    signed = torch.stack([(a * g).sum(1) for a, g in zip(out.attentions, gradients, strict=True)], 1)
    for given in ({}, {"attention_mask": mask}):
        traced = sg.trace(ours, ids, TARGETS, **given, **image)
        np.testing.assert_allclose(traced.surprisal, surprisal.detach(), atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(traced.saliency, signed.abs().detach(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("parts", [("text",), ("text", "vision")])
def test_a_model_whose_vocabulary_is_not_found_says_so(parts: tuple[str, ...]) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 101, "encoder_hidden_size": 32, "max_position_embeddings": 64, "projection_dim": 8}
    config = transformers.BlipConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8})
    model = sg.attach(transformers.BlipForConditionalGeneration(config).eval(), parts=parts)
    with pytest.raises(ValueError, match=r"model: expected a causal language model with a vocabulary head, got Blip"):
        sg.trace(model, torch.randint(5, 90, (2, 6)), TARGETS, pixel_values=torch.randn(2, 3, 16, 16))
