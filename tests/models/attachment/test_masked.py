"""Masked language models, whose tokens see those after them too, against transformers' eager attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import symground as sg
from benchmarks.common.twins import twins
from tests.models.attachment.eagers import check_logits_and_saliency, padded

SIZES = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
    "sep_token_id": 2,
}  # fmt: skip
_LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
#: name → (model's class, configuration's class without "Config", settings beyond the sizes)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "BERT": ("BertForMaskedLM", "Bert", {}),
    "RoBERTa": ("RobertaForMaskedLM", "Roberta", {}),
    "ModernBERT": ("ModernBertForMaskedLM", "ModernBert", {**_LAYERS, "local_attention": 4}),
    "ModernBERT, itself alone": ("ModernBertForMaskedLM", "ModernBert", {**_LAYERS, "local_attention": 0}),
    "ModernBERT, a window as wide as the text": (
        "ModernBertForMaskedLM",
        "ModernBert",
        {**_LAYERS, "local_attention": 16},
    ),
    "Gemma-3, all positions": (
        "Gemma3ForCausalLM",
        "Gemma3Text",
        {**_LAYERS, "use_bidirectional_attention": True, "sliding_window": 4, "num_key_value_heads": 2, "head_dim": 8},
    ),
    "ModernBERT, a wider window": ("ModernBertForMaskedLM", "ModernBert", {**_LAYERS, "local_attention": 128}),
}


def pair(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model under eager attention, and a copy that is attached."""
    model, config, more = FAMILIES[family]
    kind, settings = getattr(transformers, model), getattr(transformers, f"{config}Config")
    eager, twin = twins(kind, settings(**SIZES, **more))
    return eager, sg.attach(twin)


def positions(model: PreTrainedModel, mask: Tensor) -> dict[str, Tensor]:
    """Positions from the first valid token on; RoBERTa counts them itself, from the padding's id on."""
    if isinstance(model, transformers.RobertaForMaskedLM):
        return {}
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_logits_and_saliency_are_eagers(family: str, side: str) -> None:
    eager, ours = pair(family)
    ids, mask = padded(side, 3)
    places = positions(eager, mask)
    check_logits_and_saliency(eager, ours, ids, mask, places, places, 1e-5)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_gradients_of_the_weights_are_eagers(family: str) -> None:
    eager, ours = pair(family)
    ids, mask = padded("right", 3)
    for model in (eager, ours):
        model(ids, attention_mask=mask).logits[mask.bool()].log_softmax(-1)[:, 5].sum().backward()
    for (name, wanted), found in zip(eager.named_parameters(), ours.parameters(), strict=True):
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_silenced_heads_are_cut_from_the_output_projection(family: str) -> None:
    eager, ours = pair(family)
    ids, mask = padded("right", 3)
    with sg.ablate(ours, [(0, 1), (1, 2)]), torch.no_grad():
        found = ours(ids, attention_mask=mask).logits
    ends = ("attention.output.dense", "attn.Wo", "self_attn.o_proj")
    projections = [part for name, part in eager.named_modules() if name.endswith(ends)]
    with torch.no_grad():
        for layer, head in ((0, 1), (1, 2)):
            projections[layer].weight[:, 8 * head : 8 * head + 8] = 0
        expected = eager(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_of_pairs_with_a_window_on_both_sides(dtype: torch.dtype) -> None:
    """As a caller makes it for layers of one kind, which see two words on either side."""
    eager, ours = pair("ModernBERT")
    ids, mask = padded("left", 3)
    at = torch.arange(9)
    near = (at[:, None] - at).abs() <= 2
    valid = mask.bool()[:, None, None]
    seen = {"sliding_attention": near & valid, "full_attention": valid.expand(-1, -1, 9, -1)}
    given = {
        name: pairs if dtype == torch.bool else torch.zeros(pairs.shape).masked_fill(~pairs, -1e9)
        for name, pairs in seen.items()
    }
    with torch.no_grad():
        expected = eager(ids, attention_mask=mask).logits
        found = ours(ids, attention_mask=given).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


def test_a_layer_that_runs_several_times_is_refused() -> None:
    """ALBERT's one layer has as many matrices for each head as there are passes."""
    config = transformers.AlbertConfig(**SIZES, embedding_size=16)
    with pytest.raises(ValueError, match="layer 0 of AlbertForMaskedLM runs 2 times in a forward pass"):
        sg.attach(transformers.AlbertForMaskedLM(config).eval())


def test_a_layer_that_runs_again_only_later_is_refused_by_the_trace() -> None:
    """The trial of attaching has a few tokens; in a longer text this model runs its layers again."""
    config = transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 2})
    model = transformers.LlamaForCausalLM(config).eval()
    layer = model.model.layers[1]
    once = layer.forward

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = once(hidden, *args, **kwargs)
        return out if hidden.shape[1] < 8 else once(out, *args, **kwargs)

    layer.forward = forward
    ids = torch.randint(3, 101, (2, 9))
    sg.attach(model)
    sg.trace(model, ids[:, :7], torch.tensor([5, 7]))
    with pytest.raises(ValueError, match="layer 1 of LlamaForCausalLM runs 2 times in a forward pass"):
        sg.trace(model, ids, torch.tensor([5, 7]))


@pytest.mark.parametrize("name", ["Nystromformer", "IBert", "Bert", "Roberta"])
def test_a_mask_without_padding_changes_nothing(name: str) -> None:
    """Wherever a model's own positions begin."""
    more = {"num_landmarks": 64, "segment_means_seq_len": 64} if name == "Nystromformer" else {}
    config = getattr(transformers, f"{name}Config")(**SIZES, **more)
    _, ours = twins(getattr(transformers, f"{name}ForMaskedLM"), config)
    ids, mask = padded("right", 3)
    with torch.no_grad():
        for given in (torch.ones_like(mask), mask):
            before = ours(ids, attention_mask=given).logits[given.bool()]
            sg.attach(ours)
            torch.testing.assert_close(
                ours(ids, attention_mask=given).logits[given.bool()], before, atol=1e-4, rtol=1e-4
            )
            sg.detach(ours)


def test_layers_that_say_otherwise_are_causal_by_their_mask() -> None:
    """With and without a mask, as in eager attention; under SDPA a layer without a mask goes by itself."""
    config = transformers.GPT2Config(vocab_size=101, n_embd=32, n_layer=2, n_head=4, pad_token_id=0)
    eager, ours = twins(transformers.GPT2LMHeadModel, config)
    for model in (eager, ours):
        for block in model.transformer.h:
            block.attn.is_causal = False
    sg.attach(ours)
    ids, mask = padded("right", 3)
    for given in (None, torch.ones_like(mask), mask):
        seen = torch.ones_like(mask).bool() if given is None else given.bool()
        with torch.no_grad():
            expected = eager(ids, attention_mask=given).logits
            torch.testing.assert_close(
                ours(ids, attention_mask=given).logits[seen], expected[seen], atol=1e-4, rtol=1e-4
            )
        traced = sg.trace(ours, ids, torch.tensor([5, 7]), given)
        p = (seen * torch.arange(9)).amax(-1)
        surprisal = -expected[torch.arange(2), p].log_softmax(-1)[torch.arange(2), torch.tensor([5, 7])]
        torch.testing.assert_close(torch.tensor(traced.surprisal.values), surprisal, atol=1e-4, rtol=1e-4)
