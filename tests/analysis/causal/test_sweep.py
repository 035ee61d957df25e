"""Sweeping all heads: the exact effects equal single ablations, the first-order estimate is the slope of the gate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import symground as sg
from symground.analysis.causal.head_sweep import METHODS
from symground.analysis.causal.silenced import behaviour
from symground.analysis.probing.examples import Examples
from symground.analysis.probing.sentence_probes import Probes
from symground.data import Corpus
from symground.models import create, mixers
from symground.models.architectures.lstm import LSTMForCausalLM
from symground.models.hooks.mixers import Replacement
from symground.models.passes.partial_forward import replays


@pytest.fixture(scope="module")
def probes(corpus: Corpus) -> Probes:
    return sg.probes(corpus.tokenizer).take_contexts([0, 1, 5])  # two of one length and a shorter one


@pytest.fixture
def model(corpus: Corpus) -> PreTrainedModel:
    found = create("gpt2-4l", len(corpus.tokenizer), positions=32)
    with torch.no_grad():  # heads with a large effect
        for weight in found.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)
    return found.eval()


def surprisal(model: PreTrainedModel, examples: Examples) -> np.ndarray:
    return behaviour(model, examples, [[]]).target[0]


def one_by_one(model: PreTrainedModel, probes: Probes, mode: str, positions: str) -> np.ndarray:
    """[N,L,H]"""
    examples = probes.matched()
    where = None if positions == "all" else examples.query_masks["prediction"]
    reference = None if mode == "zero" else probes
    original = surprisal(model, examples)
    effects = np.empty((len(original), 4, 4))
    for layer in range(4):
        for head in range(4):
            with sg.ablate(model, [(layer, head)], mode, reference, positions=where):
                effects[:, layer, head] = surprisal(model, examples) - original
    return effects


@pytest.mark.parametrize("positions", ["all", "prediction"])
@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
def test_the_sweep_is_one_ablation_after_the_other(
    model: PreTrainedModel, probes: Probes, mode: str, positions: str
) -> None:
    expected = one_by_one(model, probes, mode, positions)
    swept = sg.sweep_heads(model, probes, method="exact", positions=positions, mode=mode, per_example=True)
    assert swept.dims == ("example", "layer", "head")
    assert swept.noun.values.tolist() == probes.matched().noun
    np.testing.assert_allclose(swept.values, expected, atol=2e-5)
    assert np.abs(expected).max() > 0.1
    tight = sg.sweep_heads(model, probes, method="exact", positions=positions, mode=mode, memory=1)
    assert tight.dims == ("layer", "head")
    np.testing.assert_allclose(tight.values, expected.mean(0), atol=2e-5)


@pytest.mark.parametrize("mode", ["zero", "resample"])
def test_without_reading_from_the_middle_it_is_the_same(model: PreTrainedModel, probes: Probes, mode: str) -> None:
    model.transformer.h[1].attn.c_proj.register_forward_pre_hook(lambda module, args: (args[0] * 2,), prepend=True)
    for positions in ("all", "prediction"):
        with pytest.warns(RuntimeWarning, match="cannot be read again from the middle"):
            assert not replays(model, positions == "prediction")
        with pytest.warns(RuntimeWarning, match="cannot be read again from the middle"):
            swept = sg.sweep_heads(model, probes, method="exact", positions=positions, mode=mode, per_example=True)
        np.testing.assert_allclose(swept.values, one_by_one(model, probes, mode, positions), atol=2e-5)


@pytest.mark.parametrize("positions", ["all", "prediction"])
@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
def test_first_order_is_the_slope_at_the_open_gate(
    model: PreTrainedModel, probes: Probes, mode: str, positions: str
) -> None:
    model, one = model.double(), probes.take_contexts([0])
    estimate = sg.sweep_heads(model, one, method="first-order", positions=positions, mode=mode, per_example=True)
    assert estimate.attrs["method"] == "first-order"
    examples, step = one.matched(), 1e-5
    from symground.analysis.causal.fills import fills_of

    fills = fills_of(model, mode, None if mode == "zero" else one)
    where = None if positions == "all" else examples.query_masks["prediction"]
    for layer, head in ((0, 1), (3, 2)):
        at = []
        for gate in (1 - step, 1 + step):
            gates = torch.ones(4)
            gates = gates.double().index_fill(0, torch.tensor(head), gate)
            (mixer,) = (m for m in mixers(model) if m.layer == layer)
            fill = None if fills is None else fills[layer]
            with mixer.tapped(replaced=(Replacement(gates, fill, where),)):
                at.append(surprisal(model, examples))
        slope = (at[0] - at[1]) / (2 * step)  # of a closing gate
        np.testing.assert_allclose(estimate.sel(layer=layer, head=head).values, slope, rtol=1e-3, atol=1e-4)


def test_both_come_with_their_correlation(model: PreTrainedModel, probes: Probes) -> None:
    both = sg.sweep_heads(model, probes)
    assert both.dims == both.first_order.dims == ("layer", "head")
    expected = np.corrcoef(both.values.ravel(), both.first_order.values.ravel())[0, 1]
    assert both.attrs["correlation"] == pytest.approx(expected)
    alone = sg.sweep_heads(model, probes, method="first-order")
    np.testing.assert_allclose(alone.values, both.first_order.values)
    assert "first_order" not in alone.coords


def test_weights_get_no_gradient_and_the_model_stays(model: PreTrainedModel, probes: Probes) -> None:
    examples = probes.matched()
    before = surprisal(model, examples)
    for method in METHODS:
        sg.sweep_heads(model, probes, method=method)
    assert all(weight.grad is None for weight in model.parameters())
    assert all(mixer.tap.idle for mixer in mixers(model))
    assert np.array_equal(surprisal(model, examples), before)


def test_bad_arguments_are_named(model: PreTrainedModel, probes: Probes, lstm: LSTMForCausalLM) -> None:
    for name in ("method", "positions", "mode"):
        with pytest.raises(ValueError, match=f"{name}: expected one of .*; got 'other'"):
            sg.sweep_heads(model, probes, **{name: "other"})
    with pytest.raises(ValueError, match="LSTMForCausalLM has no heads to silence"):
        sg.sweep_heads(lstm, probes)
    with pytest.raises(ValueError, match="none of its heads silenced"), sg.ablate(model, [(0, 0)]):
        sg.sweep_heads(model, probes)
