"""The causal table compares silencing the heads of each example with silencing random controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import symground as sg
from symground.analysis.causal import intervention
from symground.analysis.causal.controls import Controls
from symground.analysis.causal.head_steering import steering
from symground.analysis.causal.silenced import Behaviour, behaviour
from symground.analysis.heads.finding import head_shares
from symground.analysis.heads.selection import silenced_heads
from symground.analysis.probing.examples import Examples
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
    bare = behaviour(model, examples, [[]])
    assert row["original"] == pytest.approx(bare.target.mean())
    assert 0 <= row["p"] <= 1
    again = sg.intervene(model, probes, ["aggregate", "gather"], threshold=0.2, draws=3, batch_size=25)
    assert again.equals(table)


def test_nothing_selected_changes_nothing(corpus: Corpus, model: PreTrainedModel) -> None:
    row = sg.intervene(model, sg.probes(corpus.tokenizer), threshold=1.0, draws=2, denominator="matrix").iloc[0]
    assert row["heads_per_example"] == 0
    assert row["intervened"] == row["original"] == row["control"]
    assert np.isnan(row["mean_layer"])
    assert np.isnan(row["p"])


def surprisals(model: PreTrainedModel, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Surprisals of target and context, text by text from log_softmax."""
    target, context = [], []
    for ids, p, wanted in zip(examples.input_ids, examples.prediction.tolist(), examples.targets, strict=True):
        with torch.no_grad():
            scores = -model(ids[None, : p + 1]).logits[0].log_softmax(-1)
        target.append(scores[p, wanted].item())
        context.append(scores[:p].gather(1, ids[1 : p + 1, None]).mean().item())
    return np.array(target), np.array(context)


def test_behaviour_is_of_target_and_context_text_by_text(corpus: Corpus, model: PreTrainedModel) -> None:
    probes = sg.probes(corpus.tokenizer)
    for examples in (probes.matched(), probes.mismatched(3)):
        found = behaviour(model, examples, [[], []], batch_size=17)
        target, context = surprisals(model, examples)
        for i in range(2):
            np.testing.assert_allclose(found.target[i], target, atol=1e-5)
            np.testing.assert_allclose(found.context[i], context, atol=1e-5)


def test_mismatched_examples_have_another_noun_of_those_scored(corpus: Corpus) -> None:
    probes = sg.probes(corpus.tokenizer, mismatches=1)
    matched, mismatched = probes.matched(), probes.mismatched(0)
    assert torch.equal(matched.targets, mismatched.targets)
    differ = (matched.input_ids != mismatched.input_ids) & ~matched.query_masks["env"]
    assert not differ.any()
    own = matched.input_ids[matched.query_masks["env"]]
    other = mismatched.input_ids[mismatched.query_masks["env"]]
    assert not (own == other).any()
    nouns = {int(i): n for n, i in enumerate(own[: len(probes.nouns)])}
    assert all(probes.pairs[nouns[int(u)], nouns[int(v)]] for u, v in zip(other, own, strict=True))
    assert torch.equal(mismatched.input_ids, probes.mismatched(0).input_ids)
    wide = sg.probes(corpus.tokenizer)
    assert not torch.equal(wide.mismatched(0).input_ids, wide.mismatched(1).input_ids)


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
def test_every_measure_is_that_of_an_ablation(corpus: Corpus, model: PreTrainedModel, mode: str) -> None:
    probes = sg.probes(corpus.tokenizer).take_contexts([0, 3])
    row = sg.intervene(
        model, probes, threshold=0.2, denominator="row", mode=mode, draws=2, batch_size=5, seed=4
    ).iloc[0]  # fmt: skip
    heads = sg.find_heads(sg.trace(model, probes), threshold=0.2)
    matched, mismatched = probes.matched(), probes.mismatched(4)
    found = {}
    for name, examples, other in (("matched", matched, mismatched), ("mismatched", mismatched, matched)):
        reference = {"zero": None, "mean": probes, "resample": other.input_ids}[mode]
        with sg.ablate(model, heads, mode, reference), torch.no_grad():
            scores = -model(examples.input_ids).logits.log_softmax(-1)
        n = torch.arange(len(examples.targets))
        found[name] = scores[n, examples.prediction, examples.targets].double().numpy()
    assert row["intervened"] == pytest.approx(found["matched"].mean(), abs=1e-5)
    assert row["mismatched_intervened"] == pytest.approx(found["mismatched"].mean(), abs=1e-5)
    assert row["gain_intervened"] == pytest.approx(row["mismatched_intervened"] - row["intervened"])
    before, _ = surprisals(model, matched)
    assert row["effect"] == pytest.approx(row["intervened"] - row["original"])
    difference = found["matched"] - before
    assert row["d"] == pytest.approx(difference.mean() / difference.std(ddof=1), rel=1e-3)
    assert row["effect_low"] < row["effect"] < row["effect_high"]
    assert row["d_low"] < row["d"] < row["d_high"]
    _, context = surprisals(model, matched)
    assert row["context_original"] == pytest.approx(context.mean(), abs=1e-5)
    assert row["mode"] == mode


def test_the_rows_share_one_correction(corpus: Corpus, model: PreTrainedModel) -> None:
    probes = sg.probes(corpus.tokenizer).take_contexts([0, 3])
    table = sg.intervene(model, probes, ["aggregate", "gather", "both"], threshold=0.2, draws=9)
    assert table["kind"].tolist() == ["aggregate"] * 2 + ["gather"] * 2 + ["both"] * 2
    made = table.dropna(subset="p")
    order = made["p"].to_numpy().argsort()
    expected = np.minimum(1, np.maximum.accumulate(made["p"].to_numpy()[order] * (len(made) - np.arange(len(made)))))
    np.testing.assert_allclose(made["p_holm"].to_numpy()[order], expected)
    assert set((table["p_random"].dropna() * 10).round(9)) <= set(map(float, range(1, 11)))


def test_heads_of_one_half_are_silenced_in_the_other(corpus: Corpus, model: PreTrainedModel) -> None:
    probes = sg.probes(corpus.tokenizer).take_contexts([0, 1, 2, 3])
    traced = sg.trace(model, probes)
    (silenced,) = silenced_heads(traced, "aggregate", "row", 0.1, "held-out", "all", seed=1)
    assert silenced.where is None
    of_context = {context: {own for own, c in zip(silenced.heads, traced.context.values, strict=True) if c == context}
                  for context in range(4)}  # fmt: skip
    assert all(len(sets) == 1 for sets in of_context.values())
    shares = head_shares(traced)
    halves = 0
    for half in ([0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]):
        others = [c for c in range(4) if c not in half]
        mean = shares.sel(example=np.isin(traced.context.values, others)).mean("example").values
        expected = frozenset(zip(*(axis.tolist() for axis in np.nonzero(mean >= 0.1)), strict=True))
        halves += all(of_context[c] == {expected} for c in half)
    assert halves >= 2  # both halves use the heads of the other
    with pytest.raises(ValueError, match="'held-out' needs two contexts"):
        sg.intervene(model, probes.take_contexts([0]), selection="held-out", draws=1)


def test_silent_where_they_are_defined(corpus: Corpus, model: PreTrainedModel) -> None:
    probes = sg.probes(corpus.tokenizer).take_contexts([0, 3])
    options = {"threshold": 0.2, "denominator": "row", "draws": 2}
    row = sg.intervene(model, probes, "both", positions="own", **options).iloc[0]
    traced, examples = sg.trace(model, probes), probes.matched()
    gather = sg.find_heads(traced, "gather", 0.2)
    aggregate = sg.find_heads(traced, "aggregate", 0.2)
    with (
        sg.ablate(model, gather, positions=examples.query_masks["env"]),
        sg.ablate(model, aggregate, positions=examples.query_masks["prediction"]),
    ):
        expected = behaviour(model, examples, [[]]).target.mean()
    assert row["intervened"] == pytest.approx(expected, abs=1e-6)
    assert row["heads_per_example"] == pytest.approx(
        np.mean([len(g) + len(a) for g, a in zip(gather, aggregate, strict=True)])
    )
    everywhere = sg.intervene(model, probes, "both", **options).iloc[0]
    assert everywhere["heads_per_example"] == np.mean([len(g | a) for g, a in zip(gather, aggregate, strict=True)])
    assert everywhere["intervened"] != row["intervened"]


@pytest.mark.parametrize("match", [None, "layer", "norm"])
def test_controls_that_cannot_be_drawn_are_no_comparison(
    corpus: Corpus, model: PreTrainedModel, match: str | None
) -> None:
    """Every head is selected, so no control can be drawn."""
    probes = sg.probes(corpus.tokenizer).take_contexts([0, 3])
    row = sg.intervene(model, probes, threshold=1e-9, denominator="row", match=match, draws=20).iloc[0]
    assert row["heads_per_example"] > 10
    assert row["short"] == row["examples"]
    controls = [name for name in row.index if name.endswith("control")] + ["control_sd", "p_random"]
    assert len(controls) == 6
    assert row[controls].isna().all()
    assert np.isfinite(row[["p", "effect", "intervened", "gain_intervened"]].to_numpy(float)).all()
    steered = steering(model, probes, [0.0], threshold=1e-9, draws=3)
    assert steered[["control", "control_sd"]].isna().all(axis=None)
    assert (steered["short"] == steered["examples"]).all()


def test_a_control_that_is_short_now_and_then_is_compared(
    corpus: Corpus, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controls may be short in up to a tenth of the examples; p_random is counted from the draws."""
    probes = sg.probes(corpus.tokenizer).take_contexts([0, 3])
    kept: list[np.ndarray] = []
    measured = intervention.behaviour

    def watched(*args: Any) -> Behaviour:
        kept.append(measured(*args).target)
        return measured(*args)

    monkeypatch.setattr(intervention, "behaviour", watched)
    drawn = Controls.draw
    for short, compared in ((0, True), (1, True), (2, False)):  # of 12 examples
        monkeypatch.setattr(
            Controls, "draw", lambda self, rng, n=short: (drawn(self, rng)[0], [True] * n + [False] * (12 - n))
        )
        kept.clear()
        row = sg.intervene(model, probes, threshold=0.2, denominator="row", draws=5).iloc[0]
        assert row["short"] == short
        means = kept[2].mean(1)  # calls 0 and 1 are the original; plan 0 is the heads, the others are the draws
        expected = (1 + (means[1:] >= means[0]).sum()) / 6
        assert row["p_random"] == pytest.approx(expected) if compared else np.isnan(row["p_random"])
        assert row["control"] == pytest.approx(means[1:].mean())


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("draws: expected an integer of at least 1, got 0", {"draws": 0}),
        ("mode: expected one of 'zero', 'mean', 'resample'; got 'median'", {"mode": "median"}),
        ("match: expected one of None, 'layer', 'norm'; got 'size'", {"match": "size"}),
        ("kind: expected one of 'aggregate', 'gather', 'both'; got 'other'", {"kind": "other"}),
        ("selection: expected one of 'example', 'held-out'; got 'other'", {"selection": "other"}),
        ("positions: expected one of 'all', 'own'; got 'other'", {"positions": "other"}),
    ],
)
def test_bad_arguments_are_named(
    corpus: Corpus, model: PreTrainedModel, message: str, options: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=message):
        sg.intervene(model, sg.probes(corpus.tokenizer).take_contexts([0]), **options)  # type: ignore[arg-type]
