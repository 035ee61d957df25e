"""Models that write their attention out in PyTorch: traced as they are, or refused by what they do to their scores."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

import symground as sg
from benchmarks.common.twins import twins
from symground.models.hooks import head_outputs
from tests.models.attachment.eagers import TARGETS, check_logits_and_saliency, padded

SIZES = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": True, "n_langs": 1}
#: name → (model's class, configuration's class, settings beyond the sizes)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "openai-gpt": ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", _OLD),
    "XLM": ("XLMWithLMHeadModel", "XLMConfig", _XLM),
    "GPT-NeoX-Japanese": (
        "GPTNeoXJapaneseForCausalLM", "GPTNeoXJapaneseConfig", {"intermediate_multiple_size": 2, "rotary_pct": 1.0},
    ),
    "MegatronBERT": ("MegatronBertForMaskedLM", "MegatronBertConfig", {}),
    "RemBERT": (
        "RemBertForMaskedLM", "RemBertConfig", {"input_embedding_size": 16, "output_embedding_size": 24},
    ),
    "RoFormer": ("RoFormerForMaskedLM", "RoFormerConfig", {"embedding_size": 32}),
    "DeBERTa without relative positions": ("DebertaForMaskedLM", "DebertaConfig", {"relative_attention": False}),
}  # fmt: skip
REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "MPNet": ("MPNetForMaskedLM", "MPNetConfig", {}, "add to their scores a bias that is not proportional"),
    "DeBERTa": (
        "DebertaForMaskedLM", "DebertaConfig",
        {"relative_attention": True, "pos_att_type": ["c2p"], "max_relative_positions": 8},
        "add to their scores a bias that is not proportional",
    ),
    "XLNet": (
        "XLNetLMHeadModel", "XLNetConfig", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
        "apply 'view' to their scores",
    ),
    "YOSO": ("YosoForMaskedLM", "YosoConfig", {"use_expectation": True}, "apply 'acos' to their scores"),
    "BigBird": ("BigBirdForMaskedLM", "BigBirdConfig", {}, "lets each query see some blocks of keys"),
    "ConvBERT": ("ConvBertForMaskedLM", "ConvBertConfig", {}, "take the softmax of scores that are not one product"),
}  # fmt: skip


def pair(model: str, config: str, more: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedModel]:
    sizes = {name: value for name, value in SIZES.items() if model != "XLNetLMHeadModel" or "position" not in name}
    return twins(getattr(transformers, model), getattr(transformers, config)(**{**sizes, **more}))


def batch(side: str) -> tuple[Tensor, Tensor]:
    return padded(side, 3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_logits_and_saliency_are_eagers(family: str, side: str) -> None:
    eager, twin = pair(*FAMILIES[family])
    ours = sg.attach(twin)
    ids, mask = batch(side)
    takes = "position_ids" in inspect.signature(eager.base_model.forward).parameters
    places = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if takes else {}
    check_logits_and_saliency(eager, ours, ids, mask, places, places, 1e-5)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_silenced_head_is_cut_from_the_output_projection(family: str) -> None:
    """The oracle zeroes the head's columns of the projection that follows the attention."""
    eager, twin = pair(*FAMILIES[family])
    ours = sg.attach(twin)
    ids, mask = batch("right")
    heads = [(0, 1), (1, 2)]
    with sg.ablate(ours, heads), torch.no_grad():
        found = ours(ids, attention_mask=mask).logits
    projections = [
        part for name, part in eager.named_modules()
        if name.endswith(("c_proj", "out_lin", "attention.dense", "attention.output.dense", "attention.o_proj"))
        and "mlp" not in name and "ffn" not in name
    ]  # fmt: skip
    assert len(projections) == 2
    with torch.no_grad():
        for layer, head in heads:
            weight = projections[layer].weight
            columns = slice(head * 8, head * 8 + 8)
            if type(projections[layer]) is nn.Linear:
                weight[:, columns] = 0
            else:  # Conv1D [in, out]
                weight[columns] = 0
        expected = eager(ids, attention_mask=mask).logits
    valid = mask.bool()
    torch.testing.assert_close(found[valid], expected[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", REFUSED, ids=str)
def test_what_is_no_softmax_attention_is_refused_by_what_it_does(family: str) -> None:
    *of, message = REFUSED[family]
    _, twin = pair(*of)
    hooks = [len(x._forward_hooks) + len(x._forward_pre_hooks) for x in twin.modules()]
    with pytest.raises(ValueError, match=message):
        sg.attach(twin)
    assert hooks == [len(x._forward_hooks) + len(x._forward_pre_hooks) for x in twin.modules()]


def test_without_a_block_the_models_own_code_runs_to_the_bit_and_detach_leaves_nothing() -> None:
    _, ours = pair("BloomForCausalLM", "BloomConfig", {"n_layer": 2, "n_head": 4})
    ids, mask = batch("left")
    with torch.no_grad():
        before = ours(ids, attention_mask=mask, output_hidden_states=True)
        sg.attach(ours)
        after = ours(ids, attention_mask=mask, output_hidden_states=True)
        assert torch.equal(before.logits, after.logits)
        sg.detach(ours)
    assert not any(x._forward_hooks or x._forward_pre_hooks for x in ours.modules())


def test_falcons_bias_is_the_slopes_of_its_default_attention() -> None:
    """Its eager attention adds the bias twice (transformers 5.24); by default it runs under SDPA."""
    settings = transformers.FalconConfig(**SIZES, alibi=True)
    ours = sg.attach(twins(transformers.FalconForCausalLM, settings)[1])
    assert ours.config._attn_implementation == "sdpa"
    for side in ("left", "right"):
        ids, mask = batch(side)
        with torch.no_grad():
            own = ours(ids, attention_mask=mask).logits
            with head_outputs(sg.models.mixers(ours)):  # a tap, by which symground's attention computes the heads
                found = ours(ids, attention_mask=mask).logits
        torch.testing.assert_close(found[mask.bool()], own[mask.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("family", ["GPTNeo", "Bloom"])
def test_in_other_dtypes(family: str, dtype: torch.dtype) -> None:
    """GPT-Neo's queries and keys are float32 in any model, and BLOOM's bias is rounded to bfloat16."""
    more = {"attention_types": [[["global", "local"], 1]], "window_size": 4, "num_layers": 2, "num_heads": 4}
    more = more if family == "GPTNeo" else {"n_layer": 2, "n_head": 4}
    eager, twin = pair(f"{family}ForCausalLM", f"{family}Config", more)
    ids, mask = batch("right")
    exact = eager.double()(ids, attention_mask=mask).logits
    own = eager.to(dtype)(ids, attention_mask=mask).logits
    ours = sg.attach(twin.to(dtype))
    with head_outputs(sg.models.mixers(ours)), torch.no_grad():
        found = ours(ids, attention_mask=mask).logits
    assert found.dtype == own.dtype == dtype
    off = [float((x[mask.bool()].double() - exact[mask.bool()]).norm()) for x in (found, own)]
    assert off[0] <= 2 * off[1] + 1e-5


class OwnAttention(nn.Module):
    """Attention of a user's model; what it does to its scores is a function that the test chooses."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.num_heads, self.change, self.way = 4, change, None
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        if self.way is not None:
            return self.out(self.way(*self.qkv(x).view(*x.shape[:2], 3, 4, 8).unbind(2)))
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        self.weights = self.change(q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
        return self.out((self.weights @ v).transpose(1, 2).reshape(x.shape))


class OwnModel(transformers.PreTrainedModel):
    """A model of one such layer, which is traced back from a loss of the caller's."""

    config_class = transformers.GPT2Config

    def __init__(self, config: Any, change: Any) -> None:
        super().__init__(config)
        self.embed, self.attention, self.head = nn.Embedding(101, 32), OwnAttention(change), nn.Linear(32, 101)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        hidden = self.embed(input_ids)
        hidden = hidden + self.attention(hidden)
        return transformers.modeling_outputs.CausalLMOutput(logits=self.head(hidden), hidden_states=(hidden,))


def _hide(s: Tensor) -> Tensor:
    """Causal."""
    return s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))


def _below(s: Tensor) -> Tensor:
    return torch.ones(s.shape[-2:]).tril()


def _hide_in_place(s: Tensor) -> Tensor:
    s.add_(torch.full(s.shape[-2:], torch.finfo(s.dtype).min).triu(1))
    return s


SLOPES = torch.tensor([0.5, 0.1, 0.0, 2.0])


def _einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = _hide(torch.einsum("bihd,bjhd->bhij", q, k) / 8**0.5).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)


def _bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    folded = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
    weights = _hide(torch.bmm(folded[0], folded[1].mT) / 8**0.5).softmax(-1)
    return torch.bmm(weights, folded[2]).unflatten(0, (-1, 4)).transpose(1, 2).flatten(2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def _heads_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[H·B,T,D]: the examples of a head side by side."""
    folded = [x.permute(2, 0, 1, 3).flatten(0, 1) for x in (q, k, v)]
    weights = _hide(torch.bmm(folded[0], folded[1].mT) / 8**0.5).softmax(-1)
    return torch.bmm(weights, folded[2]).unflatten(0, (4, -1)).permute(1, 2, 0, 3).flatten(2)


def _sdpa_heads_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.permute(2, 0, 1, 3) for x in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).permute(1, 2, 0, 3).flatten(2)


def _indexed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)
    return (scores[..., :9].softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).flatten(2)


def _joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)
    weights = torch.cat([scores, torch.zeros(len(q), 4, q.shape[1], 1)], -1).softmax(-1)[..., :-1]
    return (weights @ v.transpose(1, 2)).transpose(1, 2).flatten(2)


#: Ways to write attention of [B,T,H,D] heads → [B,T,H·D], and what a refusal of it says.
WAYS: dict[str, tuple[Any, str | None]] = {
    "einsum": (_einsum, None), "bmm": (_bmm, None), "sdpa": (_sdpa, None),
    "heads before examples": (_heads_first, "as if the examples of a head were side by side"),
    "heads before examples, sdpa": (
        _sdpa_heads_first, r"mix queries of shape \[4, 2, 4, 8\] by 4 heads",
    ),
    "an index": (_indexed, "apply 'an index' to their scores"), "joined": (_joined, "apply 'cat' to their scores"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_ways_to_write_attention(way: str) -> None:
    """As many examples as heads, so that no shape tells them apart."""
    function, refusal = WAYS[way]
    model = own_model(None)
    ids = torch.randint(3, 101, (4, 9), generator=torch.Generator().manual_seed(2))
    own = model.attention
    own.way = function

    def loss(out: Any) -> Tensor:
        return out.logits[:, -1, 3]

    if refusal is not None:
        with pytest.raises(ValueError, match=refusal):
            sg.attach(model)
        return
    sg.attach(model)
    traced = sg.trace(model, ids, loss=loss)
    for i in range(4):
        alone = sg.trace(model, ids[i : i + 1], loss=loss)
        np.testing.assert_allclose(traced.saliency[i], alone.saliency[0], atol=1e-6, rtol=1e-4)
        np.testing.assert_allclose(traced.matrix_total[i], alone.matrix_total[0], atol=1e-6, rtol=1e-4)
    q, k, v = (x.detach().requires_grad_() for x in own.qkv(model.embed(ids)).view(4, 9, 3, 4, 8).unbind(2))
    weights = _hide(torch.einsum("bihd,bjhd->bhij", q, k) / 8**0.5).softmax(-1)
    mixed = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)
    (gradient,) = torch.autograd.grad(model.head(model.embed(ids) + own.out(mixed))[:, -1, 3].sum(), weights)
    np.testing.assert_allclose(traced.saliency[:, 0], (weights * gradient).sum(1).abs().detach(), atol=1e-5, rtol=1e-3)


_TEXTS = torch.tensor([0, 0, 1, 1, 1, 1, 1, 2, 2])
CHANGES: dict[str, Any] = {
    "mask": _hide,
    "in place": _hide_in_place,
    "where": lambda s: torch.where(torch.ones(s.shape[-2:], dtype=torch.bool).tril(), s, torch.tensor(-1e30)),
    "no mask": lambda s: s,
    "a window": lambda s: _hide(s).masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).tril(-3), -1e9),
    "a window on both sides": lambda s: s.masked_fill(
        torch.ones(s.shape[-2:], dtype=torch.bool).tril(-3) | torch.ones(s.shape[-2:], dtype=torch.bool).triu(3), -1e9
    ),
    "scaled after the mask": lambda s: 0.5 * _hide(s),
    "set to 0, then hidden": lambda s: s * _below(s) - 1e4 * (1 - _below(s)),
    "in float64, three dimensions": lambda s: _hide(s).view(-1, *s.shape[-2:]).double().float().view(s.shape),
    "packed texts": lambda s: _hide(s).masked_fill(_TEXTS[:, None] != _TEXTS, -1e9),
    "packed texts and a window": lambda s: (
        _hide(s).masked_fill((_TEXTS[:, None] != _TEXTS) | torch.ones(9, 9, dtype=torch.bool).tril(-3), -1e9)
    ),
    "a cap": lambda s: _hide(3 * torch.tanh(s / 3)),
    "a cap turned over": lambda s: _hide(torch.tanh(s) * -3),
    "a cap and a bias by distance": lambda s: (
        _hide((s / 0.5).tanh() * 2) + SLOPES[:, None, None] * torch.arange(s.shape[-1])
    ),
    "a bias by distance": lambda s: _hide(s) + SLOPES[:, None, None] * torch.arange(s.shape[-1]),
    "a bias by both positions": lambda s: _hide(
        s - 0.25 * (torch.arange(s.shape[-2])[:, None] - torch.arange(s.shape[-1])).abs()
    ),
}  # fmt: skip
UNLIKE: dict[str, tuple[Any, str]] = {
    "a cap after the mask": (lambda s: 3 * torch.tanh(_hide(s) / 3), "apply 'tanh' to their scores"),
    "the square of the distance": (
        lambda s: _hide(s) - 0.1 * torch.arange(s.shape[-1]).float() ** 2, "a bias that is not proportional",
    ),
    "hidden pairs": (
        lambda s: _hide(s).masked_fill(torch.eye(s.shape[-1], dtype=torch.bool).roll(-2, 1).tril(), -1e9),
        "hide other pairs than a causal mask",
    ),
    "the largest taken off": (lambda s: s - s.amax(-1, keepdim=True), "apply 'amax' to their scores"),
    "noise on the weights": (lambda s: s * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None], "apply 'mul' to their"),
    "none": (lambda s: torch.zeros_like(s), "apply 'zeros_like' to their scores"),
    "set to 0 and seen": (lambda s: s * torch.ones(s.shape[-2:]).tril(), "apply 'mul' to their"),
    "a mask scaled down": (lambda s: _hide(s) * 1e-9, "apply 'mul' to their scores"),
    "turned after the mask": (lambda s: -_hide(s), "apply 'mul' to their scores"),
    "softmax twice": (lambda s: _hide(s).softmax(-1), "apply 'softmax' to their attention weights"),
    "clamped above": (lambda s: torch.clamp(_hide(s), -1e30, 0.5), "apply 'clamp' to their scores"),
    "a mask taken off": (
        lambda s: torch.add(_hide(s), torch.ones(s.shape[-2:]), alpha=2), "apply 'add' to their scores",
    ),
    "dropped scores": (lambda s: nn.functional.dropout(_hide(s), 0.5), "apply 'dropout' to their scores"),
    "of the last key": (lambda s: s - s[..., -1:], "apply 'an index' to their scores"),
}  # fmt: skip


def own_model(change: Any) -> OwnModel:
    torch.manual_seed(0)
    model = OwnModel(transformers.GPT2Config(vocab_size=101), change).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_tapped_layer_of_a_users_own_computes_what_its_code_does(change: str) -> None:
    model = own_model(CHANGES[change])
    ids, _ = batch("left")
    own = model(ids)
    surprisal = -own.logits[torch.arange(2), -1].log_softmax(-1)[torch.arange(2), TARGETS]
    weights = model.attention.weights
    (gradient,) = torch.autograd.grad(surprisal.sum(), weights)
    expected = (weights * gradient).detach()
    traced = sg.trace(
        sg.attach(model), ids, loss=lambda out: -out.logits[:, -1].log_softmax(-1)[torch.arange(2), TARGETS]
    )
    np.testing.assert_allclose(traced.loss, surprisal.detach(), atol=1e-4)
    np.testing.assert_allclose(traced.saliency[:, 0], expected.sum(1).abs(), atol=1e-5, rtol=1e-3)
    assert torch.equal(model(ids).logits, own.logits)


@pytest.mark.parametrize("change", UNLIKE, ids=str)
def test_what_a_users_own_layer_does_otherwise_is_named(change: str) -> None:
    function, message = UNLIKE[change]
    model = own_model(function)
    with pytest.raises(ValueError, match=message):  # when attaching, or where a trial of four tokens does not show it
        sg.trace(sg.attach(model), batch("left")[0], loss=lambda out: out.logits[:, -1, 3])
