"""The causal table: heads silenced in each example, compared with random controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import symground as sg
from symground.analysis.intervene import _draw, surprisal
from symground.data import Corpus
from symground.models import create


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> PreTrainedModel:
    return create("gpt2-4l", len(corpus.tokenizer), positions=32).eval()


def test_intervene_is_find_then_ablate(corpus: Corpus, model: PreTrainedModel) -> None:
    probes = sg.probes(corpus.tokenizer)
    table = sg.intervene(model, probes, ["aggregate", "gather"], threshold=0.2, draws=3, batch_size=25)
    assert table["kind"].tolist() == ["aggregate", "aggregate", "gather", "gather"]
    assert table["denominator"].tolist() == ["row", "matrix", "row", "matrix"]
    assert (table["examples"] == 60).all()
    heads = sg.find_heads(sg.trace(model, probes), "aggregate", 0.2, "row")
    row = table.iloc[0]
    assert row["heads_per_example"] == pytest.approx(np.mean([len(own) for own in heads]))
    assert row["mean_layer"] == pytest.approx(np.mean([layer for own in heads for layer, _ in own]))
    examples = probes.matched()
    one_by_one = []
    for i, own in enumerate(heads):
        length = int(examples.prediction[i]) + 1
        with sg.ablate(model, own):
            logits = model(examples.input_ids[i : i + 1, :length]).logits[0, -1]
        one_by_one.append(-torch.log_softmax(logits, -1)[examples.targets[i]].item())
    assert row["intervened"] == pytest.approx(np.mean(one_by_one), abs=1e-5)
    assert row["original"] == pytest.approx(surprisal(model, examples, None).mean())
    assert 0 <= row["p"] <= 1
    again = sg.intervene(model, probes, ["aggregate", "gather"], threshold=0.2, draws=3, batch_size=25)
    assert again.equals(table)


def test_nothing_selected_changes_nothing(corpus: Corpus, model: PreTrainedModel) -> None:
    row = sg.intervene(model, sg.probes(corpus.tokenizer), threshold=1.0, draws=2, denominator="matrix").iloc[0]
    assert row["heads_per_example"] == 0
    assert row["intervened"] == row["original"] == row["control"]
    assert np.isnan(row["mean_layer"])
    assert np.isnan(row["p"])


def test_controls_are_as_many_random_unselected_heads() -> None:
    rng = np.random.default_rng(0)
    rest = [(layer, head) for layer in range(4) for head in range(4)][3:]
    drawn = [_draw(rng, rest, 5) for _ in range(300)]
    assert {len(heads) for heads in drawn} == {5}
    assert set().union(*drawn) == set(rest)
    assert len(_draw(rng, rest, 99)) == len(rest)
    with pytest.raises(ValueError, match="draws: expected at least 1, got 0"):
        sg.intervene(None, None, draws=0)  # type: ignore[arg-type]
