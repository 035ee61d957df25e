"""Models whose logits are more than a function of each hidden state: never traced or scored as if they were."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import symground as sg
from benchmarks.common.twins import twins
from symground.data import Corpus
from symground.models.passes import Reader
from tests.models.attachment.families import GROUPED, SIZES


def _by_position(logits: Tensor) -> Tensor:
    return logits * (1 + 0.1 * torch.arange(logits.shape[1])[:, None])


def _by_length(logits: Tensor) -> Tensor:
    return logits * (1 + 0.1 * logits.shape[1])


def _by_batch(logits: Tensor) -> Tensor:
    return logits * (1 + 0.1 * len(logits))


def _by_those_before(logits: Tensor) -> Tensor:
    return logits + 0.3 * logits.cumsum(1)


CHANGES = {
    "position": _by_position, "length": _by_length, "examples of a batch": _by_batch, "those before": _by_those_before,
}  # fmt: skip


def _model(which: str, words: int = 101) -> PreTrainedModel:
    change = CHANGES[which]

    class Changed(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = change(out.logits)
            return out

    return twins(Changed, transformers.LlamaConfig(**{**SIZES, **GROUPED, "vocab_size": words}))[1]


@pytest.mark.parametrize("which", CHANGES)
def test_logits_that_depend_on_more_than_their_hidden_state_are_refused(which: str) -> None:
    with pytest.raises(ValueError, match="do not follow from its last hidden states alone"):
        sg.attach(_model(which))


@pytest.mark.parametrize("which", [which for which in CHANGES if which != "examples of a batch"])
def test_such_a_model_is_scored_as_it_is(which: str, corpus: Corpus) -> None:
    """The oracle is the model's own pass over each text alone."""
    model = _model(which, len(corpus.tokenizer))
    probes = sg.probes(corpus.tokenizer)
    probes = probes.take_contexts([0, len(probes.contexts) - 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it cannot go on from its cache
        scores = sg.score(model, probes)
    found = scores[scores.env == scores.target].set_index(["context", "env"]).surprisal
    matched = probes.matched()
    expected = []
    for ids, p, target in zip(matched.input_ids, matched.prediction, matched.targets, strict=True):
        with torch.no_grad():
            logits = model(ids[None, : int(p) + 1]).logits[0, -1]
        expected.append(float(-logits.log_softmax(-1)[target]))
    torch.testing.assert_close(torch.tensor(found.to_numpy()), torch.tensor(expected, dtype=torch.float64), atol=1e-4,
                               rtol=1e-4, check_dtype=False)  # fmt: skip


@pytest.mark.parametrize("shift", [1, -1, 8])
def test_a_mixing_of_tokens_at_any_distance_is_noticed(shift: int) -> None:
    """The embedding of a token also has that of the token ``shift`` before it (after it, if negative)."""
    config = transformers.BertConfig(**{**SIZES, "is_decoder": False})
    model = transformers.BertForMaskedLM(config).eval()
    embedding = model.bert.embeddings.word_embeddings

    class Shifted(torch.nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            x = super().forward(ids)
            return x + x.roll(shift, 1)

    model.bert.embeddings.word_embeddings = Shifted(*embedding.weight.shape, _weight=embedding.weight.detach())
    with pytest.warns(UserWarning, match="also mixes positions by layers that symground does not know"):
        sg.attach(model)


@pytest.mark.parametrize("cuts", [(5, 12), (2, 5, 9), (8, 9, 10)])
def test_a_cache_that_fails_beyond_the_window_is_not_gone_on_from(cuts: tuple[int, ...]) -> None:
    """Moshi's cached continuation is another one there (transformers 5.24)."""
    settings = {**SIZES, **GROUPED, "sliding_window": 4, "head_dim": 8, "num_codebooks": 2, "audio_vocab_size": 10}
    model = twins(transformers.MoshiForCausalLM, transformers.MoshiConfig(**settings))[1]
    ids = torch.randint(3, 101, (2, 12))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        reader, state = Reader(model), None
        for start, end in pairwise((0, *cuts)):
            seen, state = reader.read(ids[:, start:end], state)
            expected = model.model(input_ids=ids[:, :end], use_cache=False).last_hidden_state[:, -1:]
            torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-4)
