"""Silencing heads, and the table that compares it with random controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedModel

import symground as sg
from symground.analysis.intervene import _draw, surprisal
from symground.data import Corpus
from symground.models import create, mixers


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(2, 101, (3, 6), generator=torch.Generator().manual_seed(0))


def without(model: GPT2LMHeadModel, pairs: list[tuple[int, int]], ids: torch.Tensor) -> torch.Tensor:
    """Logits with the heads' rows of the output projection (a transposed Conv1D) set to zero."""
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for layer, head in pairs:
            model.transformer.h[layer].attn.c_proj.weight[head * 8 : (head + 1) * 8] = 0
        logits = model(ids).logits
        model.load_state_dict(saved)
    return logits


def test_ablating_is_zeroing_rows_of_the_output_projection(gpt2: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    for pairs in ([(0, 1)], [(0, 0), (0, 2), (2, 1)], [(1, h) for h in range(3)], []):
        with sg.ablate(gpt2, pairs):
            got = gpt2(ids).logits
        torch.testing.assert_close(got, without(gpt2, pairs, ids), atol=1e-5, rtol=1e-5)


def test_a_set_per_example(gpt2: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    sets = [frozenset({(0, 1), (2, 2)}), frozenset(), [(1, 0)]]
    with sg.ablate(gpt2, sets):
        got = gpt2(ids).logits
        with pytest.raises(ValueError, match="gate: expected shape"):
            gpt2(ids[:2])
    for i, pairs in enumerate(sets):
        torch.testing.assert_close(got[i], without(gpt2, list(pairs), ids[i : i + 1])[0], atol=1e-5, rtol=1e-5)


def test_iterators_arrays_and_numpy_integers_name_heads_too(gpt2: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    pairs = [(0, 0), (0, 1), (2, 2)]
    expected = without(gpt2, pairs, ids)
    for heads in (
        iter(pairs),
        (p for p in pairs),
        np.array(pairs),
        torch.tensor(pairs),
        [tuple(p) for p in np.array(pairs)],
    ):
        with sg.ablate(gpt2, heads):  # type: ignore[arg-type]
            torch.testing.assert_close(gpt2(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_nested_blocks_add_up_and_everything_is_undone(gpt2: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    before = gpt2(ids).logits
    with sg.ablate(gpt2, [(0, 0)]):
        with sg.ablate(gpt2, [(0, 1)]):
            both = gpt2(ids).logits
        one = gpt2(ids).logits
    torch.testing.assert_close(both, without(gpt2, [(0, 0), (0, 1)], ids), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one, without(gpt2, [(0, 0)], ids), atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError, match="on purpose"), sg.ablate(gpt2, [(1, 1)]):
        raise RuntimeError("on purpose")
    assert torch.equal(gpt2(ids).logits, before)
    assert all(mixer.tap.idle for mixer in mixers(gpt2))


@pytest.mark.parametrize(
    ("message", "heads"),
    [
        (r"\(3, 0\) does not exist; the model has layers 0 to 2", [(3, 0)]),
        (r"\(1, 3\) does not exist; .* with 3 heads in layer 1", [(1, 3)]),
        (r"\(0, -1\) does not exist", [[(0, -1)]]),
        ("expected .* pairs", [[(0, 1, 2)]]),
        ("expected .* pairs", ["ab"]),
    ],
)
def test_heads_that_do_not_exist_are_named_and_the_model_left_as_it_was(
    gpt2: GPT2LMHeadModel, ids: torch.Tensor, message: str, heads: object
) -> None:
    before = gpt2(ids).logits
    with pytest.raises(ValueError, match=message), sg.ablate(gpt2, heads):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match="mode: expected 'zero', got 'median'"), sg.ablate(gpt2, [], mode="median"):
        pass
    assert torch.equal(gpt2(ids).logits, before)


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
