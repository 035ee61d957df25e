"""Analyses of probes in models whose tokens see later ones: no example depends on another's length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

import symground as sg
from symground.data import Corpus
from symground.models.trials import looks_ahead

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def _models(words: int) -> dict[str, tuple[Any, Any, bool]]:
    return {
        "BERT": (transformers.BertForMaskedLM, transformers.BertConfig(vocab_size=words, **SIZES), True),
        "ModernBERT": (
            transformers.ModernBertForMaskedLM,
            transformers.ModernBertConfig(
                vocab_size=words, local_attention=4, layer_types=["sliding_attention", "full_attention"],
                bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, **SIZES,
            ), True,
        ),
        "MegatronBERT": (
            transformers.MegatronBertForMaskedLM, transformers.MegatronBertConfig(vocab_size=words, **SIZES), True,
        ),
        "Llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(vocab_size=words, **SIZES), False),
    }  # fmt: skip


@pytest.fixture(params=["BERT", "ModernBERT", "MegatronBERT", "Llama"])
def model(request: pytest.FixtureRequest, corpus: Corpus) -> tuple[PreTrainedModel, bool]:
    kind, config, ahead = _models(len(corpus.tokenizer))[request.param]
    torch.manual_seed(0)
    made = kind(config).eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return sg.attach(made), ahead


def test_no_example_depends_on_a_longer_one(model: tuple[PreTrainedModel, bool], corpus: Corpus) -> None:
    """Whatever is computed of a context alone is computed of it beside longer ones too."""
    attached, ahead = model
    assert looks_ahead(attached) == ahead
    probes = sg.probes(corpus.tokenizer)
    lengths = probes.matched().prediction[:: len(probes.nouns)].tolist()
    few, many = (
        probes.take_contexts([lengths.index(min(lengths))]),
        probes.take_contexts([lengths.index(min(lengths)), lengths.index(max(lengths))]),
    )
    assert min(lengths) < max(lengths)
    nouns, length = len(probes.nouns), min(lengths) + 1
    alone, beside = sg.trace(attached, few), sg.trace(attached, many)
    np.testing.assert_allclose(beside.surprisal[:nouns], alone.surprisal, atol=1e-4, rtol=1e-4)
    found = beside.saliency.values[:nouns]
    np.testing.assert_allclose(found[..., :length, :length], alone.saliency, atol=1e-5, rtol=1e-3)
    assert (found[..., :length, length:] == 0).all()
    scores = sg.score(attached, many)
    own = scores[scores.env == scores.target].set_index(["context", "env"]).surprisal
    np.testing.assert_allclose(beside.surprisal, own, atol=1e-4, rtol=1e-4)
    last = sg.lens_gain(attached, many).set_index(["depth", "target"]).matched.unstack().iloc[-1]
    matched = scores[scores.env == scores.target].groupby("target").surprisal.mean()
    np.testing.assert_allclose(last[matched.index], matched, atol=1e-4, rtol=1e-4)  # the model's output
    ids = many.matched().input_ids[:1, :length]
    logits = []
    for reference in (few, many.matched().part(slice(0, nouns))):  # the second is padded to the longer context
        with sg.ablate(attached, [(0, 1), (1, 2)], "mean", reference), torch.no_grad():
            logits.append(attached(ids).logits)
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
    done = sg.intervene(attached, many, threshold=1e-6, draws=2)
    np.testing.assert_allclose(done.original, own.mean(), atol=1e-4, rtol=1e-4)


def _surprisals(model: PreTrainedModel, examples: Any, changes: Any = None) -> np.ndarray[Any, Any]:
    """Each example's surprisal, of its text alone; ``changes(n)`` are hooks of the pass of example n."""
    found = []
    for n, (ids, p) in enumerate(zip(examples.input_ids, examples.prediction, strict=True)):
        hooks = [] if changes is None else changes(n)
        with torch.no_grad():
            logits = model(ids[None, : int(p) + 1]).logits[0, -1].double()
        for hook in hooks:
            hook.remove()
        found.append(float(-logits.log_softmax(-1)[examples.targets[n]]))
    return np.array(found)


@pytest.mark.parametrize("mode", ["zero", "resample"])
def test_a_sweep_is_that_of_each_text_alone(model: tuple[PreTrainedModel, bool], corpus: Corpus, mode: str) -> None:
    """The oracle puts 0, or what the head gave in the mismatched text, into the input of the output projection."""
    attached, _ = model
    probes = sg.probes(corpus.tokenizer)
    lengths = probes.matched().prediction[:: len(probes.nouns)].tolist()
    probes = probes.take_contexts([lengths.index(min(lengths)), lengths.index(max(lengths))])
    matched, mismatched = probes.matched(), probes.mismatched()
    ends = ("attention.output.dense", "attn.Wo", "self_attn.o_proj")
    projections = [part for name, part in attached.named_modules() if name.endswith(ends)]
    assert len(projections) == 2
    given: dict[tuple[int, int], torch.Tensor] = {}

    def kept(n: int) -> list[Any]:
        def keep(layer: int) -> Any:
            return lambda _, args: given.__setitem__((layer, n), args[0].clone())

        return [part.register_forward_pre_hook(keep(layer)) for layer, part in enumerate(projections)]

    _surprisals(attached, mismatched, kept)
    before = _surprisals(attached, matched)
    found = sg.sweep_heads(attached, probes, method="exact", mode=mode, per_example=True)
    for layer, part in enumerate(projections):
        for head in (0, 3):
            columns = slice(8 * head, 8 * head + 8)

            def changed(n: int, part: Any = part, layer: int = layer, columns: slice = columns) -> list[Any]:
                def change(_: Any, args: Any) -> Any:
                    x = args[0].clone()
                    x[..., columns] = given[layer, n][..., columns] if mode == "resample" else 0
                    return (x,)

                return [part.register_forward_pre_hook(change)]

            effect = _surprisals(attached, matched, changed) - before
            np.testing.assert_allclose(found.sel(layer=layer, head=head), effect, atol=1e-4, rtol=1e-3)


def test_choices_are_those_of_each_text_alone(model: tuple[PreTrainedModel, bool], corpus: Corpus) -> None:
    attached, _ = model
    probes = sg.probes(corpus.tokenizer)
    matched = probes.matched()
    own = _surprisals(attached, matched)
    words = torch.tensor(sorted(set(matched.targets.tolist())))
    likeliest = []
    for ids, p in zip(matched.input_ids, matched.prediction, strict=True):
        with torch.no_grad():
            logits = attached(ids[None, : int(p) + 1]).logits[0, -1, words]
        likeliest.append(float(logits.softmax(-1).max()))
    found = sg.monitor(attached, probes).examples
    np.testing.assert_allclose(found.probability, likeliest, atol=1e-4, rtol=1e-3)
    steered = sg.steering(attached, probes, [1.0], draws=1)
    np.testing.assert_allclose(steered.surprisal, own.mean(), atol=1e-4, rtol=1e-4)
