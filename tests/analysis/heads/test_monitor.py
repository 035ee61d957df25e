"""Choices, steering and the monitor's statistics against numbers computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import PreTrainedModel

import symground as sg
from symground.analysis.causal.head_steering import steer, steering
from symground.analysis.heads import monitoring
from symground.analysis.heads.monitoring import DETECTORS, _auroc, _bins, _scores, monitor
from symground.analysis.probing.answering import choices
from symground.analysis.probing.sentence_probes import Probes
from symground.analysis.tracing.maps import saliency_maps
from symground.data import Corpus
from symground.models import create, mixers


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> PreTrainedModel:
    torch.manual_seed(0)
    model = create("gpt2-4l", len(corpus.tokenizer), positions=32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


@pytest.fixture(scope="module")
def probes(corpus: Corpus) -> Probes:
    return sg.probes(corpus.tokenizer)


def test_auroc_is_the_share_of_pairs_told_right() -> None:
    rng = np.random.default_rng(0)
    said, so = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in said[so] for b in said[~so]]
    assert _auroc(np.stack([said, so], -1)[None])[0, 0] == pytest.approx(np.mean(pairs))


def test_calibration_by_hand() -> None:
    predicted = np.array([0.05, 0.05, 0.15, 0.95, 1.0])
    wrong = np.array([False, True, False, True, True])
    bins = _bins(predicted, wrong)
    assert bins[["bin", "count"]].to_numpy().tolist() == [[0, 2], [1, 1], [9, 2]]
    np.testing.assert_allclose(bins["observed"], [0.5, 0.0, 1.0])
    told = _scores(predicted, wrong, 0)
    assert told["ece"] == pytest.approx((2 * abs(0.05 - 0.5) + abs(0.15 - 0) + 2 * abs(0.975 - 1)) / 5)
    assert told["brier"] == pytest.approx(np.mean([0.05**2, 0.95**2, 0.15**2, 0.05**2, 0]))
    assert told["brier_base"] == pytest.approx(0.6 * 0.4)
    assert told["auroc"] == pytest.approx((2 * 2 + 0.5) / 6)


def test_choices_are_the_logits(model: PreTrainedModel, probes: Probes) -> None:
    examples = probes.matched()
    with torch.no_grad():
        at_p = model(examples.input_ids).logits[torch.arange(len(probes)), examples.prediction].double()
    nouns = examples.targets.unique()
    for among, logits in (("vocabulary", at_p), ("targets", at_p[:, nouns])):
        found = choices(model, examples, among, batch_size=7)
        p = logits.softmax(-1)
        expected = logits.argmax(-1) if among == "vocabulary" else nouns[logits.argmax(-1)]
        assert found.ids.tolist() == expected.tolist()
        assert found.right.tolist() == (expected == examples.targets).tolist()
        np.testing.assert_allclose(found.probability, p.max(-1)[0], rtol=1e-4)
        np.testing.assert_allclose(found.entropy, stats.entropy(p.numpy(), axis=1), rtol=1e-3)
        own = -at_p.log_softmax(-1).gather(1, examples.targets[:, None])[:, 0]
        np.testing.assert_allclose(found.surprisal, own, rtol=1e-4)
    with pytest.raises(ValueError, match="among: expected one of 'targets', 'vocabulary'; got 'verbs'"):
        choices(model, examples, "verbs")


def test_steering_multiplies_the_heads_outputs(model: PreTrainedModel, probes: Probes) -> None:
    examples = probes.matched()
    ids = examples.input_ids
    plain = model(ids).logits
    with steer(model, [(1, 2)], 1.0):
        assert torch.equal(model(ids).logits, plain)
    with steer(model, [(1, 2)], 0.0):
        silent = model(ids).logits
    with sg.ablate(model, [(1, 2)]):
        torch.testing.assert_close(model(ids).logits, silent)
    # Doubling the head equals doubling its rows of the output projection.
    size = 128 // 4
    weight = model.transformer.h[1].attn.c_proj.weight
    with steer(model, [(1, 2)], 2.0):
        twice = model(ids).logits
    with torch.no_grad():
        weight[2 * size : 3 * size] *= 2.0
        torch.testing.assert_close(model(ids).logits, twice, atol=1e-4, rtol=1e-3)
        weight[2 * size : 3 * size] /= 2.0
    torch.testing.assert_close(model(ids).logits, plain)
    with pytest.raises(ValueError, match="factor: expected a finite number"):
        steer(model, [(1, 2)], float("inf"))


@pytest.mark.parametrize("preset", ["gpt2-4l", "mamba2-4l"])
def test_generation_with_steered_heads_is_step_by_step(corpus: Corpus, preset: str) -> None:
    model = create(preset, len(corpus.tokenizer), positions=32).eval()
    ids = torch.tensor([[5, 9, 7, 12]])
    with steer(model, [(0, 1), (2, 0)], 3.0):
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        whole = ids
        for _ in range(6):
            whole = torch.cat([whole, model(whole).logits[:, -1:].argmax(-1)], 1)
    assert made.tolist() == whole.tolist()


def test_steering_is_choices_within_steer(model: PreTrainedModel, probes: Probes) -> None:
    found = steering(model, probes, (0.0, 2.0), draws=2, threshold=0.1)
    assert found["factor"].tolist() == [0.0, 1.0, 2.0]
    before = choices(model, probes.matched())
    one = found[found["factor"] == 1.0].iloc[0]
    assert one["accuracy"] == one["control"] == before.right.mean()
    assert np.isnan(one["p"])
    assert one["surprisal"] == pytest.approx(before.surprisal.mean())
    assert found["examples"].tolist() == [len(probes)] * 3
    with pytest.raises(ValueError, match="factors: expected a list of at least one number"):
        steering(model, probes, (), draws=1)
    with pytest.raises(ValueError, match="two contexts"):
        steering(model, probes.take_contexts([0]))


def test_the_visual_attention_ratio_is_eagers(twins: Any, asked: sg.analysis.ImageQuestions) -> None:
    """Of two layers the second is in the middle: the mean over its heads of what the answer's position attends."""
    found = monitor(twins.ours, asked, threshold=0.1).examples
    for i in range(0, len(asked), 5):
        given = twins.given(asked, i)
        with torch.no_grad():
            a = twins.eager(**given, output_attentions=True).attentions[1][0, :, -1]  # [H,T]
        image = given["input_ids"][0] == twins.processor.image_token_id
        assert found["attention"][i] == pytest.approx(float(a[:, image].sum(-1).mean()), abs=1e-5)


def test_few_choices_have_no_interval_and_a_note(twins: Any, asked: sg.analysis.ImageQuestions) -> None:
    found = monitor(twins.ours, asked, threshold=0.1).detectors
    assert bool(found["auroc"].notna().all())
    assert bool(found["note"].eq("").all()) == bool(found["auroc_low"].notna().all())


def test_the_monitor_says_how_much_it_saw(model: PreTrainedModel, probes: Probes) -> None:
    found = monitor(model, probes, threshold=0.1)
    assert found.detectors["detector"].tolist() == list(DETECTORS)
    row = found.detectors.iloc[0]
    assert row["wrong"] == (~choices(model, probes.matched()).right).sum()
    assert (row["examples"], row["contexts"], row["nouns"]) == (len(probes), len(probes.contexts), len(probes.nouns))
    assert found.examples["flow"].between(0, 1).all()
    assert found.calibration.groupby("detector")["count"].sum().eq(len(probes)).all()
    predicted = found.examples["p_flow"]
    expected = ((predicted - found.examples["wrong"]) ** 2).mean()
    assert found.detectors.set_index("detector").loc["flow", "brier"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="two contexts"):
        monitor(model, probes.take_contexts([0]))


def test_where_no_choice_is_wrong_nothing_is_told(
    model: PreTrainedModel, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    always = choices(model, probes.matched())._replace(right=np.ones(len(probes), dtype=bool))
    monkeypatch.setattr(monitoring, "choices", lambda *_, **__: always)
    found = monitor(model, probes)
    assert np.isnan(found.detectors["auroc"]).all()
    assert (found.detectors["wrong"] == 0).all()


def test_maps_are_the_trace(model: PreTrainedModel, probes: Probes, corpus: Corpus) -> None:
    tokens = corpus.tokenizer.convert_ids_to_tokens(list(range(len(corpus.tokenizer))))
    maps = saliency_maps(model, probes, lambda ids: [tokens[i] for i in ids], nouns=2, contexts=2)
    assert len(maps) == 2 * 2 * len(mixers(model))
    traced = sg.trace(model, probes, rows=True)
    (row,) = maps[(maps["context"] == 1) & (maps["noun"] == probes.nouns[1]) & (maps["layer"] == 2)].to_dict("records")
    example = len(probes.nouns) + 1
    end = int(traced.prediction[example]) + 1
    assert len(row["tokens"]) == end
    assert f"{probes.nouns[1]}:<ENV>" in row["tokens"]
    saliency = traced.saliency[example, 2, :end, :end].values.astype(np.float16)
    np.testing.assert_array_equal(row["saliency"].reshape(end, end), saliency)
    np.testing.assert_array_equal(
        row["rows"].reshape(4, end), traced.rows[example, 2, :, :end].values.astype(np.float16)
    )
    assert row["surprisal"] == pytest.approx(float(traced.surprisal[example]))


@pytest.mark.parametrize("right", [True, False])
def test_where_one_half_is_all_alike_nothing_is_told(
    model: PreTrainedModel, probes: Probes, monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    """No curve can be fitted there: every detector would say the same, and have the same AUROC."""
    half = monitor(model, probes).examples["half"].to_numpy(bool)
    noun = np.arange(len(probes)) % 2 == 0
    mixed = choices(model, probes.matched())._replace(right=np.where(half, right, noun))
    monkeypatch.setattr(monitoring, "choices", lambda *_, **__: mixed)
    found = monitor(model, probes).detectors
    assert np.isnan(found["auroc"]).all()
    assert found["note"].str.contains(f"choices in one half of the contexts are {'right' if right else 'wrong'}").all()


def test_it_says_where_no_head_reaches_the_threshold(model: PreTrainedModel, probes: Probes) -> None:
    """Its strongest head is taken then; of heads without flow, one and not all."""
    assert not monitor(model, probes, threshold=0.05).detectors["note"].str.contains("no head").any()
    found = monitor(model, probes, threshold=1.0).detectors
    assert found["note"].str.contains("no head's mean share of flow reaches 1 in a half of the contexts").all()
    assert (found["heads"] == 1).all()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert (monitor(model, probes).detectors["heads"] == 1).all()
