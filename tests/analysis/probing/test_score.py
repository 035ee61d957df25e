"""Scoring: any causal language model, and each context once."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, trainers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import symground as sg
from symground.data import Corpus
from symground.models import create
from tests.analysis.subwords import ARCHITECTURES, CONTEXTS, NOUNS, subword_tokenizer, tiny


@pytest.fixture(scope="module")
def subwords() -> PreTrainedTokenizerFast:
    return subword_tokenizer()


@torch.no_grad()
def one_by_one(model: PreTrainedModel, tokenizer: Any, scores: pd.DataFrame) -> np.ndarray:
    """The surprisal of every row from the logits of its text in a pass of its own."""
    found = []
    for row in scores.itertuples():
        before, after = CONTEXTS[row.context]
        context = f"{before.format(row.env)}. {after}"
        ids = tokenizer(f"{context} {row.target}", return_tensors="pt")["input_ids"]
        start = len(tokenizer(context)["input_ids"])
        log_p = model(ids).logits[0].double().log_softmax(-1)
        found.append(-sum(log_p[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])))
    return np.array(found)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_causal_model_and_words_of_several_tokens(name: str, subwords: PreTrainedTokenizerFast) -> None:
    probes = sg.probes(subwords, NOUNS, CONTEXTS)
    assert len({len(ids) for ids in probes.targets} - {1}) > 1
    model = tiny(name, len(subwords))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if name != "Rwkv" else "ignore", RuntimeWarning)
        scores = sg.score(model, probes)
    assert len(scores) == len(CONTEXTS) * len(NOUNS) ** 2
    np.testing.assert_allclose(scores["surprisal"], one_by_one(model, subwords, scores), atol=1e-4)
    for batch_size in (1, 7):
        again = sg.score(model, probes, batch_size=batch_size)
        np.testing.assert_allclose(again["surprisal"], scores["surprisal"], atol=1e-5)
        pd.testing.assert_frame_equal(again.drop(columns="surprisal"), scores.drop(columns="surprisal"))


def test_padding_side_and_neighbours_do_not_matter(subwords: PreTrainedTokenizerFast) -> None:
    """A score equals that of the row in a batch padded on either side, with a mask; other nouns do not change it."""
    model = sg.attach(tiny("GPT2", len(subwords)))
    probes = sg.probes(subwords, NOUNS, CONTEXTS)
    scores = sg.score(model, probes)
    words = [(c, u) for c in range(len(CONTEXTS)) for u in range(len(NOUNS))]
    texts = [f"{CONTEXTS[c][0].format(NOUNS[u])}. {CONTEXTS[c][1]}" for c, u in words]
    one_token = [v for v, ids in enumerate(probes.targets) if len(ids) == 1]
    for side in ("left", "right"):
        subwords.padding_side = side
        batch = subwords(texts, padding=True, return_tensors="pt")
        mask = batch["attention_mask"]
        last = (mask * torch.arange(mask.shape[1])).amax(-1)
        with torch.no_grad():
            log_p = model(batch["input_ids"], attention_mask=mask).logits[torch.arange(len(last)), last].log_softmax(-1)
        for v in one_token:
            ours = scores[scores["target"] == NOUNS[v]]["surprisal"].to_numpy()
            np.testing.assert_allclose(ours, -log_p[:, probes.targets[v][0]].numpy(), atol=1e-4)
        again = sg.score(model, sg.probes(subwords, NOUNS, CONTEXTS))
        np.testing.assert_allclose(again["surprisal"], scores["surprisal"], atol=1e-5)
    fewer = sg.score(model, sg.probes(subwords, NOUNS[:2], CONTEXTS[1:2]))
    same = scores[(scores["context"] == 1) & scores["env"].isin(NOUNS[:2]) & scores["target"].isin(NOUNS[:2])]
    np.testing.assert_allclose(fewer["surprisal"], same["surprisal"], atol=1e-5)


def test_agrees_with_minicons(subwords: PreTrainedTokenizerFast) -> None:
    scorer = pytest.importorskip("minicons.scorer", reason="minicons is not installed: comparison with a peer")
    model = tiny("GPT2", len(subwords))
    subwords.padding_side = "right"
    probes = sg.probes(subwords, NOUNS, CONTEXTS)
    scores = sg.score(model, probes)
    peer = scorer.IncrementalLMScorer(model, "cpu", tokenizer=subwords)
    prefixes = [f"{CONTEXTS[r.context][0].format(r.env)}. {CONTEXTS[r.context][1]}" for r in scores.itertuples()]
    sums = peer.conditional_score(prefixes, scores["target"].tolist(), reduction=lambda x: -x.sum().item())
    np.testing.assert_allclose(scores["surprisal"], sums, atol=1e-4)


def test_half_precision_models_are_scored_in_float32(subwords: PreTrainedTokenizerFast) -> None:
    """The log-sum-exp is that of the exact product of bfloat16 hidden states and weights."""
    probes = sg.probes(subwords, NOUNS, CONTEXTS)
    model = tiny("GPT2", len(subwords)).bfloat16()
    scores = sg.score(model, probes)
    for row in scores[scores["target"] == "book"].itertuples():
        ids = torch.tensor([probes.rows[row.context][NOUNS.index(row.env)].ids])
        with torch.no_grad():
            hidden = model.transformer(ids).last_hidden_state[0, -1].double()
        log_p = (hidden @ model.lm_head.weight.double().T).log_softmax(-1)
        # The hidden state of a text read in two pieces is rounded differently: bfloat16 has 8 bits.
        assert row.surprisal == pytest.approx(-log_p[probes.targets[0][0]].item(), abs=0.5)
    cohere = tiny("Cohere", len(subwords)).bfloat16()
    values = sg.score(cohere, probes)["surprisal"]
    assert values.dtype == np.float32
    assert values.nunique() > len(values) * 0.9  # bfloat16 has few values


class Count:
    """Counts the tokens that the model's layers read, without a hook, since a hook would cause a trial each time."""

    def __init__(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        words, forward = model.get_input_embeddings(), torch.nn.Embedding.forward

        def counted(module: torch.nn.Embedding, ids: Tensor) -> Tensor:
            if module is words:
                self.shapes.append(tuple(ids.shape))
            return forward(module, ids)

        monkeypatch.setattr(torch.nn.Embedding, "forward", counted)

    @property
    def tokens(self) -> int:
        return sum(b * t for b, t in self.shapes)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_each_context_and_each_beginning_is_read_once(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, batch_size: int | None
) -> None:
    contexts = [("takes {} from MOT", "a"), ("takes {}", "the"), ("puts {} down", "a"), ("takes {} down", "a")]
    probes = sg.probes(corpus.tokenizer, contexts=contexts)
    model = create("gpt2-4l", len(corpus.tokenizer), positions=32).eval()
    count = Count(model, monkeypatch)
    sg.score(model, probes)  # the model's trial is cached now
    count.shapes.clear()
    sg.score(model, probes, batch_size=batch_size)
    beginnings = {rows[0].before for rows in probes.rows}
    rest = sum(len(row.noun) + len(row.after) for rows in probes.rows for row in rows)
    assert len(beginnings) == 2
    assert count.tokens == sum(map(len, beginnings)) + rest


def test_mismatches_are_those_asked_for(corpus: Corpus) -> None:
    model = create("gpt2-4l", len(corpus.tokenizer), positions=32).eval()
    everything = sg.score(model, sg.probes(corpus.tokenizer)).set_index(["context", "env", "target"])["surprisal"]
    probes = sg.probes(corpus.tokenizer, mismatches=2, seed=1)
    scores = sg.score(model, probes)
    assert len(scores) == 10 * 6 * 3
    assert scores.groupby(["context", "target"]).size().eq(3).all()
    assert (scores["env"] == scores["target"]).sum() == 60
    found = scores.set_index(["context", "env", "target"])["surprisal"]
    np.testing.assert_allclose(found, everything.loc[found.index], atol=1e-5)
    assert torch.equal(probes.pairs, sg.probes(corpus.tokenizer, mismatches=2, seed=1).pairs)
    assert not torch.equal(probes.pairs, sg.probes(corpus.tokenizer, mismatches=2, seed=2).pairs)
    gains = sg.gain(scores).set_index("target")
    for noun, of_noun in scores.groupby("target"):
        matched = of_noun["env"] == noun
        by_hand = of_noun[~matched]["surprisal"].mean() - of_noun[matched]["surprisal"].mean()
        assert gains.loc[noun, "gain"] == pytest.approx(by_hand, abs=1e-5)


def test_mismatches_of_the_same_category(corpus: Corpus) -> None:
    nouns = ["box", "book", "ball", "paper"]  # household, toys, toys, household on the CDI
    probes = sg.probes(corpus.tokenizer, nouns, mismatches="category")
    assert probes.pairs.tolist() == [[a == b or {a, b} in ({0, 3}, {1, 2}) for b in range(4)] for a in range(4)]
    own = sg.probes(
        corpus.tokenizer,
        nouns,
        mismatches="category",
        categories=dict(zip(nouns, "xxxy", strict=True)) | {"paper": "x"},
    )
    assert own.pairs.all()
    with pytest.raises(ValueError, match="no other noun has the category of box"):
        sg.probes(corpus.tokenizer, nouns[:3], mismatches="category")
    with pytest.raises(ValueError, match="no category is known of book, paper"):
        sg.probes(corpus.tokenizer, nouns, mismatches="category", categories={"box": "x", "ball": "x"})
    for bad in (0, 4, "none", True):
        with pytest.raises(ValueError, match="mismatches: expected"):
            sg.probes(corpus.tokenizer, nouns, mismatches=bad)


def test_a_model_that_stops_caching_is_read_as_a_whole(subwords: PreTrainedTokenizerFast) -> None:
    """Its caches would be empty, and its scores wrong."""
    model = tiny("GPT2", len(subwords))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    probes = sg.probes(subwords, NOUNS, CONTEXTS)
    expected = sg.score(model, probes)["surprisal"]
    np.testing.assert_allclose(sg.score(model.train(), probes)["surprisal"], expected, atol=1e-5)
    model.gradient_checkpointing_enable()
    with pytest.warns(RuntimeWarning, match=r"gave no cache to go on from; .*model\.eval\(\)"):
        found = sg.score(model, probes)["surprisal"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_tokenizer_must_tell_where_tokens_stand_and_part_words(subwords: PreTrainedTokenizerFast) -> None:
    class Slow:
        is_fast = False

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    with pytest.raises(ValueError, match="tokenizer: expected a fast one"):
        sg.probes(Slow(), NOUNS, CONTEXTS)
    letters = Tokenizer(models.BPE(unk_token="?"))
    letters.train_from_iterator(
        ["the book a ball"] * 9, trainers.BpeTrainer(vocab_size=60, special_tokens=["?"], show_progress=False)
    )  # tokens are not words: they may cross spaces
    joined = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?")
    with pytest.raises(ValueError, match="tokenizer: it joins"):
        sg.probes(joined, ["book", "ball"], [("a {} a", "the")])
    with pytest.raises(ValueError, match="not in it: zebra, zoo$"):
        sg.probes(joined, ["book", "zebra"], [("a {} zoo", "the")])
