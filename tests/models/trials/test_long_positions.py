"""Rotary positions that depend on the text's length: each text has the result of the text alone, or is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import symground as sg
from symground.analysis import Probes
from symground.analysis.causal.silenced import behaviour
from symground.analysis.probing.answering import choices
from symground.data import Corpus
from symground.models.passes.kv_cache import Reader
from symground.models.trials.reproducibility import stretch_of

LIMIT = 9


def build(kind: str, vocabulary: int, limit: int = LIMIT) -> PreTrainedModel:
    """A Phi-3 with LongRoPE, or a Llama with dynamic NTK, with ``limit`` as the trained length."""
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
        "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "longrope":
        config = transformers.Phi3Config(
            **sizes, max_position_embeddings=64, original_max_position_embeddings=limit,
            rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0, 2.0],
                             "long_factor": [3.0, 6.0, 12.0, 24.0]},
        )  # fmt: skip
        return transformers.Phi3ForCausalLM(config).eval()
    config = transformers.LlamaConfig(
        **sizes, max_position_embeddings=limit,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@torch.no_grad()
def alone(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Surprisal [V] after a text, by a fresh copy, because dynamic NTK remembers the longest text before."""
    return -copy.deepcopy(model)(ids[None], use_cache=False).logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_the_limit_is_known(kind: str) -> None:
    stretch = stretch_of(build(kind, 50))
    assert stretch is not None
    assert (stretch.kind, stretch.limit) == (kind, LIMIT)
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8,
        num_hidden_layers=1, num_attention_heads=1))  # fmt: skip
    assert stretch_of(plain) is None


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
@pytest.mark.parametrize("cuts", [(4, 2), (8, 1), (8, 2), (9, 1), (8, 1, 1), (3, 3, 3, 3), (10, 4)])
def test_reading_on_is_one_reading(kind: str, cuts: tuple[int, ...]) -> None:
    model = build(kind, 50)
    fresh = copy.deepcopy(model)
    ids = torch.randint(1, 50, (2, sum(cuts)), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        reader, state, read = Reader(model), None, 0
        for cut in cuts:
            seen, state = reader.read(ids[:, read : read + cut], state)
            read += cut
            found = reader.surprisal(seen[:, -1], torch.arange(50))
            expected = torch.stack([alone(fresh, row[:read]) for row in ids])
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def probes(corpus: Corpus) -> Probes:
    """Contexts of several lengths, on both sides of the limit."""
    return sg.probes(corpus.tokenizer, nouns=["ball", "book", "box"])


def lengths(probes: Probes) -> list[int]:
    return sorted((probes.matched().prediction + 1).unique().tolist())


def limit_within(probes: Probes) -> int:
    found = lengths(probes)
    assert len(found) > 1
    return found[len(found) // 2 - 1]


def matched_alone(model: PreTrainedModel, probes: Probes) -> np.ndarray:
    examples = probes.matched()
    each = zip(examples.input_ids, examples.prediction.tolist(), examples.targets.tolist(), strict=True)
    return np.array([alone(model, ids[: p + 1])[target].item() for ids, p, target in each])


def test_scores_and_sweeps_are_of_each_text_alone(corpus: Corpus, probes: Probes) -> None:
    """This tests LongRoPE; texts beyond the trained length of a dynamic NTK model are refused."""
    model = build("longrope", len(corpus.tokenizer), limit_within(probes))
    expected = matched_alone(model, probes)
    other = matched_alone(build("longrope", len(corpus.tokenizer), 60), probes)
    assert abs(expected - other).max() > 0.05  # the limit has an effect
    scores = sg.score(model, probes)
    found = scores[scores.env == scores.target]["surprisal"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    sg.attach(model)
    examples = probes.matched()
    for positions in ("all", "prediction"):
        swept = sg.sweep_heads(model, probes, positions=positions, per_example=True)
        for i in range(0, len(examples.targets), 5):
            ids = examples.input_ids[None, i, : int(examples.prediction[i]) + 1]
            where = None if positions == "all" else torch.arange(ids.shape[1]) == ids.shape[1] - 1
            with torch.no_grad(), sg.ablate(model, [(1, 2)], positions=where):
                silenced = -model(ids, use_cache=False).logits[0, -1].log_softmax(-1)[examples.targets[i]]
            effect = float(swept.sel(layer=1, head=2)[i])
            assert effect == pytest.approx(float(silenced) - expected[i], abs=1e-4)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_texts_on_both_sides_are_not_read_in_one_pass(kind: str, corpus: Corpus) -> None:
    model = sg.attach(build(kind, len(corpus.tokenizer)))
    ids = torch.randint(1, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    targets, mask = torch.tensor([5, 6]), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0  # 7 and 12 tokens
    with pytest.raises(
        ValueError, match=rf"turns its positions by the longest text .* beyond {LIMIT} tokens .*7 to 12"
    ):
        sg.trace(model, ids, targets, mask)
    expected = [alone(model, row)[t].item() for row, t in zip((ids[0, 5:], ids[1]), targets, strict=True)]
    one_by_one = sg.trace(model, ids, targets, mask, batch_size=1)
    np.testing.assert_allclose(one_by_one.surprisal, expected, atol=1e-4)
    whole = sg.trace(model, ids, targets)
    np.testing.assert_allclose(
        whole.surprisal, [alone(model, row)[t].item() for row, t in zip(ids, targets, strict=True)], atol=1e-4
    )


def test_analyses_that_pad_refuse_what_is_on_both_sides(corpus: Corpus, probes: Probes) -> None:
    model = sg.attach(build("longrope", len(corpus.tokenizer), limit_within(probes)))
    examples = probes.matched()
    for function in (
        lambda: sg.trace(model, probes),
        lambda: sg.intervene(model, probes, draws=1),
        lambda: sg.monitor(model, probes),
        lambda: choices(model, examples),
        lambda: behaviour(model, examples, [[]]),
        lambda: sg.lens_gain(model, probes),
        lambda: sg.ablate(model, [(0, 0)], "mean", probes).__enter__(),
    ):
        with pytest.raises(ValueError, match="turns its positions by the longest text of a pass"):
            function()
    short = sg.attach(build("longrope", len(corpus.tokenizer), 60))
    np.testing.assert_allclose(sg.trace(short, probes).surprisal, matched_alone(short, probes), atol=1e-4)
    beyond = sg.attach(build("longrope", len(corpus.tokenizer), lengths(probes)[0] - 1))  # all are longer
    np.testing.assert_allclose(sg.trace(beyond, probes).surprisal, matched_alone(beyond, probes), atol=1e-4)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_generation_within_an_ablation_crosses_the_limit_as_the_model_does(kind: str) -> None:
    model = sg.attach(build(kind, 50))
    plain = build(kind, 50)
    with torch.no_grad():
        for layer, head in ((0, 1), (1, 3)):
            plain.model.layers[layer].self_attn.o_proj.weight[:, head * 8 : (head + 1) * 8] = 0
    ids = torch.randint(1, 50, (1, 6), generator=torch.Generator().manual_seed(2))
    how: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with sg.ablate(model, [(0, 1), (1, 3)]):
        found = model.generate(ids, **how)
    assert found.tolist() == plain.generate(ids, **how).tolist()
