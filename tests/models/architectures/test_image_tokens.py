"""Models that read images: in every architecture, patches are embedded as projections of their features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import symground as sg
from symground.models import create, set_images
from symground.models.architectures.image_tokens import PatchEmbedding
from symground.models.passes.inputs import id_limit

WORDS, PATCHES, WIDTH = 50, 4, 8
FEATURES = np.random.default_rng(0).standard_normal((3, PATCHES, WIDTH)).astype(np.float16)
#: Image 2, then words.
IDS = torch.tensor([[58, 59, 60, 61, 7, 3, 9, 4]])


@pytest.fixture(params=["gpt2-4l", "mamba2-4l", "lstm-1l"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    made = create(request.param, WORDS, positions=16, image_width=WIDTH).eval()
    set_images(made, FEATURES)
    return made


def test_patches_enter_as_projections_of_their_features(model: PreTrainedModel) -> None:
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, PatchEmbedding)
    found = embedding(IDS)
    torch.testing.assert_close(found[0, 4:], embedding.weight[IDS[0, 4:]])
    torch.testing.assert_close(found[0, :4], embedding.projection(torch.from_numpy(FEATURES[2]).float()))
    # Words alone are embedded as in a model without images.
    assert torch.equal(embedding(IDS[:, 4:]), torch.nn.functional.embedding(IDS[:, 4:], embedding.weight))
    assert id_limit(model) == WORDS + 3 * PATCHES


def test_the_head_has_words_only_and_its_weights_are_theirs(model: PreTrainedModel) -> None:
    assert model(input_ids=IDS).logits.shape == (1, 8, WORDS)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert sg.models.readout(model).weight.shape[0] == WORDS


def test_a_patch_is_about_as_long_as_a_word_at_first(model: PreTrainedModel) -> None:
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        image, word = embedding(IDS[:, :4]).std(), embedding.weight.std()
    assert float(image) == pytest.approx(float(word), rel=0.3)


def test_saved_and_loaded_it_gives_the_same(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert not any("features" in name for name in again.state_dict())
    with pytest.raises(ValueError, match="id 61 is a patch beyond the vocabulary of 50, and the model has no images"):
        again(input_ids=IDS)
    set_images(again, torch.from_numpy(FEATURES))
    torch.testing.assert_close(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_generates_words_after_an_image(model: PreTrainedModel) -> None:
    out = model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False)
    assert torch.equal(out[:, :8], IDS)
    assert (out[:, 8:] < WORDS).all()
    # Greedy decoding gives the same words as one forward pass over the whole text.
    assert torch.equal(out[0, 8:], model(input_ids=out).logits[0, 7:-1].argmax(-1))


def test_the_projection_learns_and_the_features_do_not(model: PreTrainedModel) -> None:
    model.train()
    model(input_ids=IDS).logits[0, -1, 5].backward()
    embedding = model.get_input_embeddings()
    assert embedding.projection.weight.grad.abs().sum() > 0
    assert not embedding.features.requires_grad


def test_a_model_of_words_is_the_same_with_and_without_the_room_for_images() -> None:
    with_room, without = create("gpt2-4l", WORDS, image_width=WIDTH), create("gpt2-4l", WORDS)
    for name, weight in without.named_parameters():
        assert with_room.get_parameter(name).shape == weight.shape
    assert sum(p.numel() for p in with_room.parameters()) - sum(p.numel() for p in without.parameters()) == 128 * 9


def test_traces_heads_over_patches() -> None:
    model = create("gpt2-4l", WORDS, positions=16, image_width=WIDTH).eval()
    set_images(model, FEATURES)
    image = torch.zeros_like(IDS, dtype=torch.bool)
    image[:, :4] = True
    traced = sg.trace(model, IDS, torch.tensor([5]), groups={"env": image})
    assert float(traced.flow.sel(query_group="prediction", key_group="env").sum()) > 0
    embeds = model.get_input_embeddings()(IDS)
    direct = model(inputs_embeds=embeds).logits[0, -1].log_softmax(-1)[5]
    assert float(traced.surprisal[0]) == pytest.approx(-direct.item(), rel=1e-5)


def test_what_does_not_fit_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"features: expected \[N,P,8\], got \[3, 4, 7\]"):
        set_images(model, FEATURES[..., :7])
    with pytest.raises(ValueError, match="model: GPT2LMHeadModel reads no images"):
        set_images(create("gpt2-4l", WORDS), FEATURES)
