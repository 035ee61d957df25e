"""Probes whose ENV noun is an image: they differ only in the image, its patches are the noun, recall has no image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

import symground as sg
from symground.analysis.causal.fills import aligned
from symground.analysis.heads.finding import head_shares
from symground.analysis.probing.encoding import ProbeImages
from symground.analysis.tracing.regions import saliency_by_region
from symground.data import CorpusBuilder
from symground.data.sequences import ImageSet, Shown, word_level_tokenizer
from symground.models import create, set_images

NOUNS = ["book", "ball", "dog"]
PATCHES = 4
TOKENIZER = word_level_tokenizer(dict.fromkeys([f"{w}:<LAN>" for w in (*NOUNS, "a", "see", "the")] + ["<CHI>"], 1) | {
    "book:<ENV>": 1
})  # fmt: skip
V = len(TOKENIZER)
#: Image 3·i + n shows noun n at two patches, which are the same for all nouns of a context.
IMAGES = ProbeImages(
    PATCHES, {noun: [Shown(n, (1, 2)), Shown(3 + n, (0, 3))] for n, noun in enumerate(NOUNS)},
    {noun: [n, 3 + n] for n, noun in enumerate(NOUNS)}, empty=6,
)  # fmt: skip
CONTEXTS = [("{}", "see the", (), ("CHI", "CHI"), "image"), ("{}", "a", (), ("CHI", "CHI"), "image")]


@pytest.fixture
def model() -> PreTrainedModel:
    made = create("gpt2-4l", V, positions=24, image_width=8).eval()
    features = np.random.default_rng(0).standard_normal((7, PATCHES, 8)).astype(np.float16)
    set_images(made, 3 * features)
    return made


def ids_of(image: int) -> list[int]:
    return [V + image * PATCHES + p for p in range(PATCHES)]


def test_matched_and_mismatched_differ_in_the_image_alone() -> None:
    probes = sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=IMAGES)
    matched, mismatched = probes.matched(), probes.mismatched()
    assert matched.input_ids.shape == (6, PATCHES + 3)
    for i, (context, noun) in enumerate(zip(matched.context, matched.noun, strict=True)):
        image = IMAGES.of[noun][context].image
        assert matched.input_ids[i, :PATCHES].tolist() == ids_of(image)
        words = TOKENIZER.convert_ids_to_tokens(matched.input_ids[i, PATCHES : matched.prediction[i] + 1].tolist())
        assert words == (["<CHI>", "see:<LAN>", "the:<LAN>"] if context == 0 else ["<CHI>", "a:<LAN>"])
        other = mismatched.input_ids[i, :PATCHES].tolist()
        assert other != ids_of(image)
        assert other in [ids_of(IMAGES.of[n][context].image) for n in NOUNS]
    assert torch.equal(matched.input_ids[:, PATCHES:], mismatched.input_ids[:, PATCHES:])
    assert torch.equal(matched.targets, mismatched.targets)
    aligned(matched, mismatched)  # heads can be resampled, since the noun is at the same position


def test_the_patches_of_a_noun_are_the_noun_and_the_rest_of_the_image_its_event() -> None:
    examples = sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=IMAGES).matched()
    where = {name: mask[0].nonzero().flatten().tolist() for name, mask in examples.key_masks.items()}
    assert where == {"env": [2], "event": [0], "patches": [1]}  # patch 3 comes after the noun's last
    assert examples.query_masks["env"][0].nonzero().flatten().tolist() == [2]
    where = {name: mask[3].nonzero().flatten().tolist() for name, mask in examples.key_masks.items()}
    assert where == {"env": [3], "event": [1, 2], "patches": [0]}
    wider = sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=IMAGES, span=1).matched()
    assert wider.key_masks["env"][3].nonzero().flatten().tolist() == [3, 4]
    # If the patches that show the noun are unknown, the whole image counts as the noun.
    unknown = ProbeImages(PATCHES, {noun: [Shown(n)] for n, noun in enumerate(NOUNS)})
    examples = sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=unknown).matched()
    where = {name: mask[0].nonzero().flatten().tolist() for name, mask in examples.key_masks.items()}
    assert where == {"env": [3], "event": [], "patches": [0, 1, 2]}
    assert examples.input_ids[0, 0] == examples.input_ids[3, 0]  # one image serves both contexts


def test_scores_are_those_of_single_passes(model: PreTrainedModel) -> None:
    probes = sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=IMAGES)
    scores = sg.score(model, probes).set_index(["context", "env", "target"])["surprisal"]
    assert len(scores) == 18
    for (context, env, target), found in scores.items():
        words = ["<CHI>", "see:<LAN>", "the:<LAN>"] if context == 0 else ["<CHI>", "a:<LAN>"]
        ids = ids_of(IMAGES.of[env][context].image) + TOKENIZER.convert_tokens_to_ids(words)
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        expected = -float(logits[TOKENIZER.convert_tokens_to_ids(f"{target}:<LAN>")])
        assert found == pytest.approx(expected, rel=1e-4)
    assert sg.gain(scores.reset_index())["gain"].abs().min() > 0


def test_flow_from_all_patches_of_the_noun_is_flow_from_the_noun(model: PreTrainedModel) -> None:
    probes = sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=IMAGES)
    traced = sg.trace(model, probes)
    assert traced.key_group.values.tolist() == ["env", "event", "patches"]
    into = traced.flow.sel(query_group="prediction")
    expected = into.sel(key_group=["env", "patches"]).sum("key_group") / traced.row_total.sel(query_group="prediction")
    np.testing.assert_allclose(head_shares(traced, "aggregate"), expected, rtol=1e-5)
    within = traced.flow.sel(query_group="env")
    expected = within.sel(key_group=["event", "patches"]).sum("key_group") / traced.matrix_total
    np.testing.assert_allclose(head_shares(traced, "gather", "matrix"), expected, rtol=1e-5)
    regions = saliency_by_region(traced)
    assert regions.region.values.tolist() == ["env", "event", "other"]
    # The noun's region is all its patches, which are 1 and 2 in the first example.
    one = sg.trace(model, probes.take_contexts([0]))
    noun = one.saliency.isel(query=one.prediction[0].item(), key=[1, 2]).sum("key").mean("example")
    np.testing.assert_allclose(saliency_by_region(one).sel(region="env").values, noun.values, rtol=1e-5)


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
def test_interventions_and_sweeps_run_on_images(model: PreTrainedModel, mode: str) -> None:
    probes = sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=IMAGES)
    table = sg.intervene(model, probes, kind=["aggregate", "gather", "both"], mode=mode, draws=2, threshold=0.05)
    assert np.isfinite(table["intervened"]).all()
    swept = sg.sweep_heads(model, probes, mode=mode)
    assert np.isfinite(swept).all()
    assert swept.attrs["correlation"] > 0.5


def test_recall_is_asked_after_an_image_of_nothing() -> None:
    probes = sg.probes(TOKENIZER, NOUNS, [("see the {}", "a")], cue="lan", images=IMAGES)
    examples = probes.matched()
    row = examples.input_ids[0].tolist()
    assert row[:PATCHES] == ids_of(6)
    words = TOKENIZER.convert_ids_to_tokens(row[PATCHES:])
    assert words == ["<CHI>", "see:<LAN>", "the:<LAN>", "book:<LAN>", "<CHI>", "a:<LAN>"]
    assert examples.key_masks["env"][0].nonzero().flatten().tolist() == [7]
    assert examples.key_masks["event"][0].nonzero().flatten().tolist() == [4, 5, 6]
    assert "patches" not in examples.key_masks
    without = ProbeImages(PATCHES, IMAGES.of)
    assert (
        sg.probes(TOKENIZER, NOUNS, [("see the {}", "a")], cue="lan", images=without).matched().input_ids.shape[1] == 6
    )


def test_an_image_that_shows_the_target_too_is_no_mismatch() -> None:
    shared = ProbeImages(PATCHES, IMAGES.of, {**IMAGES.shown, "ball": [1, 4, 0]})  # image 0, of a book, shows a ball
    probes = sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=shared)
    assert probes.pairs.tolist() == [[True, False, True], [True, True, True], [True, True, True]]
    assert not ((scored := probes.pairs)[0, 1])
    assert scored.sum() == 8
    all_of_them = {noun: range(6) for noun in NOUNS}
    with pytest.raises(ValueError, match=r"so they have no mismatch: \['book', 'ball', 'dog'\]"):
        sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=ProbeImages(PATCHES, IMAGES.of, all_of_them))


def test_contexts_lose_their_first_sentence_and_are_asked_once() -> None:
    pairs = [("picks up {}", "see the"), ("takes {} from MOT", "see the"), ("drops {}", "a")]
    probes = sg.probes(TOKENIZER, NOUNS, pairs, cue="image", images=IMAGES)
    assert [(context.env, context.lan) for context in probes.contexts] == [("{}", "see the"), ("{}", "a")]


def test_what_does_not_fit_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="images: contexts that show an image need images of the nouns, got None"):
        sg.probes(TOKENIZER, NOUNS, CONTEXTS)
    with pytest.raises(ValueError, match="images: there is none of ball, dog"):
        sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=ProbeImages(PATCHES, {"book": [Shown(0)]}))
    wrong = {**IMAGES.of, "dog": [Shown(2, (4,))]}
    with pytest.raises(ValueError, match="images: expected patches 0 to 3 of 'dog', got 4"):
        sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=ProbeImages(PATCHES, wrong))
    of_two = replace(IMAGES, shown={**IMAGES.shown, "book": [0, 3, 1, 4]})  # the images of the dog do not show a book
    assert sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=of_two).pairs[:, 0].tolist() == [True, False, True]
    of_all = replace(IMAGES, shown={**IMAGES.shown, "book": range(6)})
    with pytest.raises(ValueError, match=r"images: .* they have no mismatch: \['book'\]"):
        sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=of_all)
    probes = sg.probes(TOKENIZER, NOUNS, CONTEXTS, images=IMAGES)
    with pytest.raises(ValueError, match=f"is outside the model's vocabulary of {V}; is this its tokenizer"):
        sg.score(create("gpt2-4l", V, positions=24), probes)
    set_images(model, np.zeros((2, PATCHES, 8), np.float16))
    with pytest.raises(ValueError, match=f"vocabulary of {V} and its 8 patches of images"):
        sg.score(model, probes)


def test_cooccurrence_counts_images_of_the_noun_and_talk_near_them() -> None:
    builder = CorpusBuilder()
    builder.patches = PATCHES
    talk = [["<CHI>", "see:<LAN>", "the:<LAN>", "book:<LAN>"], ["<CHI>", "a:<LAN>", "ball:<LAN>"]]
    builder.add(talk, image=0, shown=["book", "dog"])
    builder.add([["<CHI>", "dog:<LAN>"]], image=1, shown=["book"])
    built = builder.build()
    features = np.zeros((2, PATCHES, 8), np.float16)
    corpus = replace(built, images=ImageSet(features, (), {}), shown=builder.shown)
    table = sg.cooccurrence(corpus, NOUNS, window=6, cue="image").set_index(["env", "lan"])
    count = table["count"]
    assert count[("book", "book")] == count[("dog", "book")] == 1
    assert count[("book", "ball")] == 0  # seven tokens from the image's last patch
    assert count[("book", "dog")] == 1
    assert count[("ball", "book")] == 0
    assert table.loc[("book", "book"), "env_count"] == 2
    assert table.loc[("ball", "ball"), "env_count"] == 0
    assert table.loc[("dog", "dog"), "lan_count"] == 1
    wider = sg.cooccurrence(corpus, NOUNS, window=7, cue="image").set_index(["env", "lan"])["count"]
    assert wider[("book", "ball")] == 1
    assert isinstance(wider, pd.Series)
    with pytest.raises(ValueError, match="cue: expected a corpus with images for 'image'"):
        sg.cooccurrence(built, NOUNS, cue="image")
