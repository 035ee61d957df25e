"""Whether tokens see later ones is found however little they see of them, and is not mistaken for rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import symground as sg
from symground.models.trials import looks_ahead
from tests.analysis.subwords import subword_tokenizer

TOKENIZER = subword_tokenizer()
_SIZES: dict[str, Any] = {
    "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
_EXPERTS = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
_MODERN = {"cls_token_id": 1, "sep_token_id": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForMaskedLM": ("BertConfig", {}),
    "BertLMHeadModel": ("BertConfig", {"is_decoder": True}),
    "RobertaForMaskedLM": ("RobertaConfig", {}),
    "ModernBertForMaskedLM": ("ModernBertConfig", _MODERN),
    "DebertaV2ForMaskedLM": ("DebertaV2Config", {"relative_attention": True, "position_buckets": 8}),
    "LlamaForCausalLM": ("LlamaConfig", {}),
    "BloomForCausalLM": ("BloomConfig", {"n_layer": 2, "n_head": 2}),
    "MixtralForCausalLM": ("MixtralConfig", _EXPERTS),
    "OlmoeForCausalLM": ("OlmoeConfig", _EXPERTS),
    "Mamba2ForCausalLM": ("Mamba2Config", {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1}),
}  # fmt: skip


def built(name: str, scale: float) -> PreTrainedModel:
    kind, more = MODELS[name]
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, name)(
        getattr(transformers, kind)(**_SIZES, **more, initializer_range=scale)
    )
    return model.eval()


def gradient_reaches_back(model: PreTrainedModel) -> bool:
    """By autograd: whether an early logit depends on the embedding of a later token."""
    embeds = model.get_input_embeddings()(torch.tensor([[3, 4, 5, 6, 7]])).detach().requires_grad_()
    logits = model(inputs_embeds=embeds).logits[0, 1]
    (gradient,) = torch.autograd.grad((logits * torch.randn_like(logits)).sum(), embeds)
    return bool((gradient[0, 2:] != 0).any())


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        (0.002, torch.float32),
        (0.02, torch.float32),
        (0.3, torch.float32),
        (0.02, torch.bfloat16),
        (0.3, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_a_gradient_tells(name: str, scale: float, dtype: torch.dtype) -> None:
    model = built(name, scale)
    ahead = gradient_reaches_back(model)
    assert ahead == ("Masked" in name)
    assert looks_ahead(model.to(dtype)) == ahead


@pytest.mark.parametrize("scale", [0.002, 0.02])
@pytest.mark.parametrize("name", ["BertForMaskedLM", "RobertaForMaskedLM", "ModernBertForMaskedLM"])
def test_a_fresh_encoder_is_no_causal_model(name: str, scale: float) -> None:
    model = sg.attach(built(name, scale))
    ids, span = torch.arange(3, 33)[None], (torch.arange(30) > 20)[None]
    with pytest.raises(ValueError, match=f"span: {name} sees tokens of the span before it predicts them"):
        sg.trace(model, ids, span=span)
    with pytest.raises(ValueError, match=f"span: {name} sees later tokens"):
        sg.sweep_heads(model, ids, span=span)
    with pytest.raises(ValueError, match=f"the tokens of {name} see later ones"):
        sg.surprisal(model, "look at the book", TOKENIZER)
