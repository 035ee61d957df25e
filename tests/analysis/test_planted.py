"""The analyses find the one known head of a model that copies ENV to LAN, and nothing in models without such a head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import symground as sg
from symground.analysis import trace
from symground.analysis.causal.head_steering import steering
from symground.analysis.heads.monitoring import monitor
from symground.analysis.heads.null_shares import share_table
from symground.analysis.probing.sentence_probes import Probes
from symground.analysis.statistics.curves import over_training
from symground.analysis.tracing.lenses.tuned_lens import lens_gain
from symground.data import Corpus, env, lan

LAYER, HEAD = 1, 2
_WIDTH, _HEADS = 512, 4


def planted(corpus: Corpus, probes: Probes, strength: float = 1.0) -> PreTrainedModel:
    """Tokens are unit vectors; one head attends from all positions to the ENV noun and writes the LAN noun's vector."""
    torch.manual_seed(0)
    vocabulary = corpus.tokenizer.get_vocab()
    # One neuron in an MLP, since the MLPs will add nothing.
    config = GPT2Config(
        vocab_size=len(corpus.tokenizer), n_positions=32, n_embd=_WIDTH, n_inner=1, n_layer=3, n_head=_HEADS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    size = _WIDTH // _HEADS
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
        model.transformer.wte.weight.copy_(torch.eye(_WIDTH)[: config.vocab_size])
        for block in model.transformer.h:
            block.mlp.c_proj.weight.zero_()
            block.attn.c_proj.weight.mul_(0.02)
        attention = model.transformer.h[LAYER].attn
        weight, bias = attention.c_attn.weight, attention.c_attn.bias  # [E, 3·E]
        query, key, value = (part * _WIDTH + HEAD * size for part in range(3))
        for start in (query, key, value):
            weight[:, start : start + size] = 0.0
        attention.c_proj.weight[HEAD * size : (HEAD + 1) * size] = 0.0
        bias[query] = size**0.5
        for i, noun in enumerate(probes.nouns):
            scene, word = vocabulary[env(noun)], vocabulary[lan(noun)]
            weight[scene, key] = 1.0
            weight[scene, value + i] = 1.0
            attention.c_proj.weight[HEAD * size + i, word] = strength * _WIDTH**-0.5
    return sg.attach(model)


@pytest.fixture(scope="module")
def probes(corpus: Corpus) -> Probes:
    return sg.probes(corpus.tokenizer)


@pytest.fixture(scope="module")
def copier(corpus: Corpus, probes: Probes) -> PreTrainedModel:
    return planted(corpus, probes)


def test_the_gain_is_found(copier: PreTrainedModel, probes: Probes) -> None:
    gains = sg.gain(sg.score(copier, probes))
    assert (gains["gain"] > 3).all()
    (row,) = over_training(gains.assign(model="m", seed=0, step=0)).to_dict("records")
    assert row["p"] < 1e-3
    assert row["gain_low"] > 3


def test_detection_finds_the_head(copier: PreTrainedModel, probes: Probes) -> None:
    traced = trace(copier, probes, rows=True)
    for denominator in ("row", "matrix"):
        found = sg.find_heads(traced, "aggregate", denominator=denominator)
        assert all((LAYER, HEAD) in own for own in found)
    shares = share_table(traced, trace(copier, probes.mismatched(), saliency=False))
    best = shares[(shares["kind"] == "aggregate") & (shares["denominator"] == "row")].nlargest(1, "share")
    assert best[["layer", "head"]].to_numpy().tolist() == [[LAYER, HEAD]]
    # The head's row at the prediction comes from the noun; it lowers the surprisal, so it is negative.
    rows = traced.rows.sel(layer=LAYER, head=HEAD)
    at_noun = (rows * (traced.group == 0)).sum("key")
    assert (at_noun < 0).all()
    assert float((abs(rows).sum("key") - abs(at_noun)).max()) < 1e-2


def test_the_sweep_and_the_intervention_find_it(copier: PreTrainedModel, probes: Probes) -> None:
    swept = sg.sweep_heads(copier, probes)
    assert np.unravel_index(int(swept.values.argmax()), swept.shape) == (LAYER, HEAD)
    others = swept.copy()
    others[LAYER, HEAD] = 0.0
    assert float(abs(others).max()) < 0.05 * float(swept.max())
    table = sg.intervene(copier, probes, "aggregate", denominator="row", draws=20)
    (row,) = table.to_dict("records")
    assert row["intervened"] - row["original"] > 3
    assert row["p"] < 1e-6
    assert row["gain_p"] < 1e-3
    assert row["gain_intervened"] < 0.1 * row["gain_original"]
    assert abs(row["control"] - row["original"]) < 0.1


def test_the_lens_reads_it_from_its_layer_on(copier: PreTrainedModel, probes: Probes) -> None:
    by_depth = lens_gain(copier, probes).groupby("depth")["gain"].mean()
    assert abs(by_depth[: LAYER + 1]).max() < 0.1  # the input of its layer, and depths below
    assert by_depth[LAYER + 1 :].min() > 3


def test_steering_turns_it_up_and_down(corpus: Corpus, probes: Probes) -> None:
    weak = planted(corpus, probes, 0.5)
    found = steering(weak, probes, (0.0, 4.0), draws=5).set_index("factor")
    assert found.loc[4.0, "accuracy"] == 1.0
    assert found.loc[0.0, "accuracy"] < 0.4
    assert found.loc[4.0, "surprisal"] < found.loc[1.0, "surprisal"] < found.loc[0.0, "surprisal"]
    assert (abs(found["control"] - found.loc[1.0, "accuracy"]) < 0.1).all()
    assert found.loc[0.0, "heads_per_example"] == 1.0


def test_flow_tells_where_the_head_did_not_look(corpus: Corpus, probes: Probes) -> None:
    """The head attends to half of the nouns only. For the others there is no flow, and the model names another word."""
    model = planted(corpus, probes)
    vocabulary = corpus.tokenizer.get_vocab()
    attention = model.transformer.h[LAYER].attn
    with torch.no_grad():
        for noun in probes.nouns[::2]:
            attention.c_attn.weight[vocabulary[env(noun)], _WIDTH:] = 0.0
    found = monitor(model, probes)
    told = found.detectors.set_index("detector")
    assert told.loc["flow", "auroc"] > 0.8
    assert told.loc["flow", "brier"] < told.loc["flow", "brier_base"]
    assert found.examples.groupby("wrong")["flow"].mean().diff().iloc[-1] < -0.3


@pytest.mark.slow
def test_where_there_is_nothing_nothing_is_found(corpus: Corpus, probes: Probes) -> None:
    """100 random models have false positives at about the level of the tests, and no lasting gain."""
    of_tests, of_heads = [], []
    few = probes.take_contexts(range(4))
    config = GPT2Config(
        vocab_size=len(corpus.tokenizer), n_positions=32, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2,
        bos_token_id=None, eos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    for seed in range(100):
        torch.manual_seed(seed)
        model = sg.attach(GPT2LMHeadModel(config).eval())
        gains = sg.gain(sg.score(model, few))
        assert abs(gains["gain"].mean()) < 0.5
        frame = gains.assign(model="m", seed=0, step=0)
        of_tests.append(over_training(frame)[["p", "p_permutation"]].iloc[0].to_numpy(float))
        table = sg.intervene(model, few, "aggregate", denominator="row", draws=1, seed=seed)
        of_heads.append(table["gain_p"].iloc[0])
    # With 100 tests at 5 %, the probability of 12 or more false positives is below 1 in 200.
    assert (np.array(of_tests) < 0.05).sum(0).max() < 12
    assert np.isfinite(of_heads).all()
    assert (np.array(of_heads) < 0.05).sum() < 12
