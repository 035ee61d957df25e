"""Analyses of probes whose words have several tokens, against passes over one text at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

import symground as sg
from symground.analysis import Probes, saliency_by_region
from symground.analysis.probing import Examples, choices
from symground.analysis.tracing import saliency_maps
from symground.models import mixers
from tests.analysis.subwords import CONTEXTS, NOUNS, subword_tokenizer, tiny

MODELS = ["GPT2", "Llama", "Gemma2", "Mamba2"]


@pytest.fixture(scope="module")
def subwords() -> PreTrainedTokenizerFast:
    return subword_tokenizer()


@pytest.fixture
def probes(subwords: PreTrainedTokenizerFast) -> Probes:
    return sg.probes(subwords, NOUNS, CONTEXTS)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, subwords: PreTrainedTokenizerFast) -> PreTrainedModel:
    return sg.attach(tiny(request.param, len(subwords)))


@torch.no_grad()
def surprisals(model: PreTrainedModel, examples: Examples, words: list[tuple[int, ...]]) -> np.ndarray:
    """Of a word after each context, from the logits of context and word in a pass of their own."""
    found = []
    for ids, p, word in zip(examples.input_ids, examples.prediction.tolist(), words, strict=True):
        text = torch.tensor([*ids[: p + 1].tolist(), *word])
        log_p = model(text[None], use_cache=False).logits[0].double().log_softmax(-1)
        found.append(-sum(float(log_p[p + r, i]) for r, i in enumerate(word)))
    return np.array(found)


def own(probes: Probes) -> list[tuple[int, ...]]:
    return list(probes.targets) * len(probes.contexts)


def test_rows_end_before_the_last_token_of_the_word(probes: Probes, subwords: PreTrainedTokenizerFast) -> None:
    examples = probes.matched()
    assert len({len(ids) for ids in probes.targets}) > 2
    for i, word in enumerate(own(probes)):
        context, noun = divmod(i, len(probes.nouns))
        row = probes.rows[context][noun].ids
        assert tuple(examples.input_ids[i, : len(row) + len(word) - 1].tolist()) == (*row, *word[:-1])
        assert examples.prediction[i] == len(row) - 1
        at_p = torch.arange(len(row) - 1, len(row) - 1 + len(word)).tolist()
        assert examples.query_masks["prediction"][i].nonzero()[:, 0].tolist() == at_p
        assert [x for x in examples.wanted.positions[i].tolist() if x >= 0] == at_p
    assert examples.words == own(probes)


def test_a_trace_is_that_of_the_words_as_a_span(model: PreTrainedModel, probes: Probes) -> None:
    """The word's last token is not read, which changes nothing before it."""
    examples, words = probes.matched(), own(probes)
    traced = sg.trace(model, probes, rows=True)
    np.testing.assert_allclose(traced.surprisal, surprisals(model, examples, words), rtol=1e-4)
    for i, word in enumerate(words):
        p = int(examples.prediction[i])
        ids = torch.tensor([[*examples.input_ids[i, : p + 1].tolist(), *word]])
        span = torch.arange(ids.shape[1])[None] > p
        groups = {name: torch.zeros_like(span) for name in examples.key_masks}
        for name, mask in examples.key_masks.items():
            groups[name][0, : p + 1] = mask[i, : p + 1]
        expected = sg.trace(model, ids, groups=groups, span=span, rows=True).isel(example=0)
        got, length = traced.isel(example=i), ids.shape[1] - 1
        for name in ("flow", "row_total"):
            of_prediction = got[name].sel(query_group="prediction")
            np.testing.assert_allclose(
                of_prediction, expected[name].sel(query_group="prediction"), atol=1e-6, rtol=1e-3
            )
        np.testing.assert_allclose(got.matrix_total, expected.matrix_total, atol=1e-6, rtol=1e-3)
        for name, dims in (("rows", ["key"]), ("saliency", ["query", "key"])):
            ours, theirs = (x[name].isel(dict.fromkeys(dims, slice(0, length))) for x in (got, expected))
            np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-3)
    each = sg.trace(model, probes, saliency=False, per_token=True)
    np.testing.assert_allclose(each.token_surprisal.sum("target"), traced.surprisal, rtol=1e-4)
    assert bool(saliency_by_region(traced).notnull().all())


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_interventions_measure_whole_words(model: PreTrainedModel, probes: Probes, mode: str) -> None:
    asked = {"selection": "example", "denominator": "row", "threshold": 0.05, "mode": mode, "draws": 2}
    table = sg.intervene(model, probes, "aggregate", **asked).iloc[0]
    matched, mismatched = probes.matched(), probes.mismatched(0)
    traced = sg.trace(model, probes)
    heads = sg.find_heads(traced, "aggregate", 0.05)
    assert sum(map(len, heads)) > 4
    for name, examples in (("", matched), ("mismatched_", mismatched)):
        original, intervened = [], []
        for i, of_example in enumerate(heads):
            part = examples.part(slice(i, i + 1))
            original += surprisals(model, part, [own(probes)[i]]).tolist()
            with sg.ablate(model, of_example, mode, probes if mode == "mean" else None):
                intervened += surprisals(model, part, [own(probes)[i]]).tolist()
        assert table[f"{name}original"] == pytest.approx(np.mean(original), rel=1e-4)
        assert table[f"{name}intervened"] == pytest.approx(np.mean(intervened), rel=1e-4)
    scores = sg.score(model, probes)
    same = scores[scores["env"] == scores["target"]]["surprisal"]
    assert table["original"] == pytest.approx(same.mean(), rel=1e-4)


@pytest.mark.parametrize("positions", ["all", "prediction"])
def test_a_sweep_is_one_head_of_one_text_at_a_time(model: PreTrainedModel, probes: Probes, positions: str) -> None:
    found = sg.sweep_heads(model, probes, positions=positions, per_example=True)
    examples, words = probes.matched(), own(probes)
    for i in (0, 2, 3, 7, 13, 19):
        part, p = examples.part(slice(i, i + 1)), int(examples.prediction[i])
        before = surprisals(model, part, [words[i]])[0]
        for mixer in mixers(model):
            for head in range(0, mixer.heads, 3):
                where = None if positions == "all" else torch.arange(p + 1 + len(words[i])) >= p
                with sg.ablate(model, [(mixer.layer, head)], positions=where):
                    after = surprisals(model, part, [words[i]])[0]
                ours = float(found.sel(example=i, layer=mixer.layer, head=head))
                assert ours == pytest.approx(after - before, abs=2e-4)
    first = found.first_order.values
    gate = torch.ones(len(words), mixers(model)[0].heads, requires_grad=True)
    with mixers(model)[0].tapped(gate=gate):
        total = torch.zeros(())
        if positions == "all":
            hidden = model(examples.input_ids, use_cache=False).logits.log_softmax(-1)
            total = examples.wanted.surprisal(lambda rows, ids: -rows.gather(1, ids), hidden).sum()
            np.testing.assert_allclose(first[:, 0], -torch.autograd.grad(total, gate)[0], atol=2e-4)


@pytest.mark.parametrize("among", ["targets", "vocabulary"])
def test_choices_weigh_whole_words(model: PreTrainedModel, probes: Probes, among: str) -> None:
    examples, words = probes.matched(), own(probes)
    found = choices(model, examples, among, batch_size=7)
    np.testing.assert_allclose(found.surprisal, surprisals(model, examples, words), rtol=1e-4)
    if among == "targets":
        each = sorted(probes.targets)
        log_p = -np.stack([surprisals(model, examples, [word] * len(words)) for word in each], 1)
        share = np.exp(log_p - np.logaddexp.reduce(log_p, 1, keepdims=True))
        assert list(found.words) == [each[k] for k in share.argmax(1)]
        assert found.right.tolist() == [a == b for a, b in zip(found.words, words, strict=True)]
        np.testing.assert_allclose(found.probability, share.max(1), rtol=1e-4)
        np.testing.assert_allclose(found.entropy, -(share * np.log(share)).sum(1), rtol=1e-4)
        return
    for i, (word, p) in enumerate(zip(words, examples.prediction.tolist(), strict=True)):
        ids = examples.input_ids[i, : p + 1]
        said = model.generate(ids[None], max_new_tokens=len(word), do_sample=False)[0, p + 1 :].tolist()
        assert found.right[i] == (said == list(word))
        assert found.words[i] == (said[0],)


def test_the_monitor_traces_the_word_that_the_model_chooses(
    model: PreTrainedModel, subwords: PreTrainedTokenizerFast
) -> None:
    probes = sg.probes(subwords, ["notebook", "ice cream", "bookshelf"], CONTEXTS)
    found = sg.monitor(model, probes)
    chosen = choices(model, probes.matched())
    assert any(len(word) > 1 for word in chosen.words)
    own_flow = sg.trace(model, probes.matched().with_words(chosen.words), saliency=False)
    shares = own_flow.flow.sel(query_group="prediction", key_group="env") / own_flow.row_total.sel(
        query_group="prediction"
    )
    heads = shares.values.reshape(len(shares), -1)
    for value, of_heads in zip(found.examples["flow"], heads, strict=True):
        assert of_heads.min() - 1e-6 <= value <= of_heads.max() + 1e-6
    steered = sg.steering(model, probes, factors=[0.0], draws=2)
    base = steered[steered["factor"] == 1].iloc[0]
    assert base["accuracy"] == pytest.approx(chosen.right.mean())
    assert base["surprisal"] == pytest.approx(chosen.surprisal.mean())


@torch.no_grad()
@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_the_lens_reads_each_token_after_those_before_it(
    name: str, probes: Probes, subwords: PreTrainedTokenizerFast
) -> None:
    model = sg.attach(tiny(name, len(subwords)))
    found = sg.lens_gain(model, probes, batch_size=6)
    scores = sg.score(model, probes)
    by_pair = scores.groupby(["env", "target"])["surprisal"].mean().unstack()
    depth = found["depth"].max()
    last = found[found["depth"] == depth].set_index("target")
    first = found[found["depth"] == 0].set_index("target")
    head, norm_of = model.get_output_embeddings(), getattr(model.base_model, "ln_f" if name == "GPT2" else "norm")
    for v, noun in enumerate(probes.nouns):
        assert last.loc[noun, "matched"] == pytest.approx(by_pair.loc[noun, noun], rel=1e-4)
        others = by_pair[noun].drop(noun).mean()
        assert last.loc[noun, "mismatched"] == pytest.approx(others, rel=1e-4)
        values = []
        for i in range(len(probes.contexts)):
            row, word = probes.rows[i][v].ids, probes.targets[v]
            states = model(torch.tensor([[*row, *word[:-1]]]), output_hidden_states=True).hidden_states[0][0]
            log_p = head(norm_of(states[len(row) - 1 :])).log_softmax(-1)
            values.append(-sum(float(log_p[r, token]) for r, token in enumerate(word)))
        assert first.loc[noun, "matched"] == pytest.approx(np.mean(values), rel=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_monitor_of_the_fewest_examples(model: PreTrainedModel, subwords: PreTrainedTokenizerFast) -> None:
    """Two nouns in two contexts: the curves are of two examples, fewer than they have coefficients."""
    probes = sg.probes(subwords, ["book", "notebook"], CONTEXTS[:2])
    for among in ("targets", "vocabulary"):
        found = sg.monitor(model, probes, among=among)
        assert len(found.examples) == 4
        assert found.examples["flow"].between(0, 1).all()


def test_maps_and_attention_reach_the_last_prediction_position(
    probes: Probes, subwords: PreTrainedTokenizerFast
) -> None:
    model = sg.attach(tiny("Llama", len(subwords)))
    words = subwords.convert_ids_to_tokens(range(len(subwords)))
    maps = saliency_maps(model, probes, lambda ids: [words[i] for i in ids], nouns=5, contexts=1)
    examples, traced = probes.matched(), sg.trace(model, probes, rows=True)
    seen = sg.attention(model, probes)
    assert isinstance(maps, pd.DataFrame)
    for i, noun in enumerate(probes.nouns):
        length = int(examples.lengths[i])
        row: Any = maps[(maps["noun"] == noun) & (maps["layer"] == 1)].iloc[0]
        assert list(row["tokens"]) == [words[t] for t in examples.input_ids[i, :length].tolist()]
        expected = traced.saliency[i, 1, :length, :length].values
        np.testing.assert_allclose(row["saliency"].reshape(length, length), expected, atol=1e-3, rtol=1e-2)
        whole = sg.attention(model, examples.input_ids[i : i + 1, :length])
        np.testing.assert_allclose(seen.rows[i, :, :, 0, :length], whole.rows[0, :, :, 0], atol=1e-5, rtol=1e-4)


def test_a_model_that_sees_the_word_before_it_predicts_it_is_refused(
    probes: Probes, subwords: PreTrainedTokenizerFast
) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = sg.attach(BertForMaskedLM(BertConfig(vocab_size=len(subwords), **sizes)).eval())
    asked: list[Callable[[], object]] = [
        lambda: sg.trace(model, probes), lambda: sg.intervene(model, probes), lambda: sg.sweep_heads(model, probes),
        lambda: sg.lens_gain(model, probes), lambda: sg.monitor(model, probes),
    ]  # fmt: skip
    for analysis in asked:
        with pytest.raises(
            ValueError, match="probes: BertForMaskedLM sees later tokens, .* expected words of one token"
        ):
            analysis()
    assert len(sg.score(model, probes)) == len(CONTEXTS) * len(NOUNS) ** 2
