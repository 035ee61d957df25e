"""Dropout and similar noise: every analysis refuses it by name if two passes would differ, and only then."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

import symground as sg
from symground.analysis.causal.head_steering import steering
from symground.analysis.causal.silenced import behaviour
from symground.analysis.probing.answering import choices
from symground.data import Corpus
from symground.models.trials.reproducibility import check_deterministic

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.analysis.spelled import spelled
from tests.models.attachment.eagers import padded as batch
from tests.models.attachment.families import FAMILIES, SIZES, pair

#: Settings of transformers' configurations, in various families, that make training passes differ.
SETTINGS = (
    "attention_dropout", "hidden_dropout", "dropout", "activation_dropout", "layerdrop", "resid_pdrop", "embd_pdrop",
    "attn_pdrop", "residual_dropout", "embedding_dropout", "router_jitter_noise",
)  # fmt: skip
MORE = {"Starcoder2": ("Starcoder2", "Starcoder2", {"num_key_value_heads": 2})}
CASES = []
for family, (_, config, more) in {**FAMILIES, **MORE}.items():
    known = getattr(transformers, f"{config}Config")(**{**SIZES, **more})
    CASES += [(family, name) for name in SETTINGS if hasattr(known, name)]


def build(family: str, **settings: float) -> PreTrainedModel:
    kind, config, more = {**FAMILIES, **MORE}[family]
    known = getattr(transformers, f"{config}Config")(**{**SIZES, **more})
    off = {name: 0.0 for name in SETTINGS if hasattr(known, name)}
    return pair(kind, config, {**more, **off, **settings})[1]


def is_random(model: PreTrainedModel) -> bool:
    """Whether many passes differ."""
    ids, _ = batch("left")
    with torch.no_grad():
        first = model(ids).logits
        return any(not torch.equal(model(ids).logits, first) for _ in range(12))


@pytest.mark.parametrize(("family", "setting"), CASES, ids=lambda x: str(x))
def test_every_familys_settings_are_refused_in_training(family: str, setting: str) -> None:
    model = build(family, **{setting: 0.4}).train()
    torch.manual_seed(0)
    if is_random(model):
        with pytest.raises(ValueError, match=r"model: expected model\.eval\(\)"):
            check_deterministic(model)
    check_deterministic(model.eval())


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_training_without_dropout_is_taken(family: str) -> None:
    model = build(family).train()
    assert not is_random(model)
    check_deterministic(model)
    assert model.training


class Inside(nn.Module):
    """A module that makes passes differ without a setting that says so."""

    def __init__(self, change: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.change, self.own = change, torch.Generator().manual_seed(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(self, x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda self, x: functional.dropout(x, 0.3, self.training), "two passes of LlamaForCausalLM"),
        (lambda self, x: x + torch.randn(x.shape, generator=self.own), "two passes of LlamaForCausalLM"),
        (lambda self, x: x * (1 + torch.rand_like(x)), "two passes of LlamaForCausalLM"),
        (nn.AlphaDropout(0.2), "act_fn drops 0.2 of its inputs"),
        (nn.Dropout1d(0.2), "act_fn drops 0.2 of its inputs"),
        (nn.BatchNorm1d(9), "act_fn is a batch norm"),
        (nn.RReLU(), "act_fn draws its slopes"),
    ],
    ids=["functional", "a generator of its own", "noise", "alpha", "whole", "batch norm", "slopes"],
)
def test_what_is_not_told_is_found(change: Any, message: str) -> None:
    model = build("Llama").train()
    model.model.layers[1].mlp.act_fn = change if isinstance(change, nn.Module) else Inside(change)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        check_deterministic(model)
    assert torch.equal(torch.get_rng_state(), state)


ASKED: dict[str, Callable[[PreTrainedModel, Any], Any]] = {
    "trace": lambda m, p: sg.trace(m, p),
    "trace of ids": lambda m, p: sg.trace(m, p.matched().input_ids, p.matched().targets),
    "score": sg.score,
    "surprisal": lambda m, p: sg.surprisal(m, *spelled(p)),
    "sweep": sg.sweep_heads,
    "intervene": lambda m, p: sg.intervene(m, p, draws=1),
    "monitor": sg.monitor,
    "steering": lambda m, p: steering(m, p, [2.0], draws=1),
    "choices": lambda m, p: choices(m, p.matched()),
    "behaviour": lambda m, p: behaviour(m, p.matched(), [[]]),
    "lens": lambda m, p: sg.TunedLens.fit(m, p.matched().input_ids, steps=1),
    "lens gain": sg.lens_gain,
    "lens read": lambda m, p: sg.lens_read(m, p.matched().input_ids),
    "mean ablation": lambda m, p: sg.ablate(m, [(0, 0)], "mean", p).__enter__(),
    "memory": lambda m, p: sg.trace_memory(m, 8),
}


@pytest.mark.parametrize("analysis", ASKED)
def test_every_analysis_refuses(corpus: Corpus, analysis: str) -> None:
    settings = transformers.LlamaConfig(
        vocab_size=len(corpus.tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=40, attention_dropout=0.3, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = sg.attach(transformers.LlamaForCausalLM(settings)).train()
    message = (
        r"model: expected model\.eval\(\), or no dropout; model\.layers\.0\.self_attn has attention_dropout = 0\.3"
    )
    with pytest.raises(ValueError, match=message):
        ASKED[analysis](model, sg.probes(corpus.tokenizer).take_contexts([0, 5]))
