"""Attaching and detaching: a detached model is as it was, and a refusal says what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    PreTrainedModel,
)

import symground as sg
from tests.models.attachment.builders import SIZES, T, gpt2, ids, llama, lstm, mamba2, mistral

BUILDS = {"Llama": llama, "GPT-2": gpt2, "Mistral": mistral, "Mamba-2": mamba2, "LSTM": lstm}


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("name", BUILDS)
def test_detached_it_is_what_it_was(name: str, copied: bool) -> None:
    model = BUILDS[name]()
    mask = torch.ones(2, T, dtype=torch.long)
    mask[0, :3] = 0
    names = [n for n in vars(model) if n.startswith("_symground")]

    def outputs() -> list[Tensor]:
        with torch.no_grad():
            return [model(ids()).logits, model(ids(), attention_mask=mask).logits]

    def parts() -> list[Any]:
        return [
            (type(m), vars(m).get("forward"), len(m._forward_pre_hooks), len(m._forward_hooks), sorted(vars(m)))
            for m in model.modules()
        ]

    before, was, config = outputs(), parts(), model.config.to_dict()
    implementation = model.config._attn_implementation
    sg.attach(model)
    traced = sg.trace(model, ids(), torch.tensor([5, 7]))
    if "flow" in traced:
        with sg.ablate(model, [(0, 1)]):
            model(ids())
            with pytest.raises(ValueError, match="expected none of its heads silenced"):
                sg.detach(model)
    if copied:
        model = copy.deepcopy(model)
    assert sg.detach(model) is model
    assert all(torch.equal(a, b) for a, b in zip(outputs(), before, strict=True))
    assert parts() == was
    assert names == [n for n in vars(model) if n.startswith("_symground")] == []
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == implementation
    assert sg.detach(model) is model
    with pytest.raises(ValueError, match="expected one made traceable by symground.attach"):
        sg.trace(model, ids(), torch.tensor([5, 7]))
    again = sg.trace(sg.attach(model), ids(), torch.tensor([5, 7]))
    np.testing.assert_array_equal(again.surprisal, traced.surprisal)


def test_an_attention_chosen_after_attaching_stays() -> None:
    model = sg.attach(llama())
    model.set_attn_implementation("eager")
    assert sg.detach(model).config._attn_implementation == "eager"


REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "Mamba": (
        lambda: transformers.MambaForCausalLM(
            transformers.MambaConfig(vocab_size=101, hidden_size=32, num_hidden_layers=2)
        ),
        "mix positions by MambaMixer",
    ),
    "RWKV": (
        lambda: transformers.RwkvForCausalLM(
            transformers.RwkvConfig(vocab_size=101, hidden_size=32, num_hidden_layers=2)
        ),
        "mix positions by .*RwkvSelfAttention",
    ),
    "MPNet": (
        lambda: transformers.MPNetForMaskedLM(transformers.MPNetConfig(**{**SIZES, "pad_token_id": 1})),
        "layers of MPNetSelfAttention add to their scores a bias that is not proportional to the distance",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_left_as_it_was_and_said_what_to_do_with(name: str) -> None:
    build, why = REFUSED[name]
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        before = model(ids()).logits
    with pytest.raises(ValueError, match=f"model: .*{why}") as refusal:
        sg.attach(model)
    if "logits" not in why:  # the lens also refuses a model whose logits are not the head's product
        assert "symground.score takes any causal language model as transformers loads it" in str(refusal.value)
    with torch.no_grad():
        assert torch.equal(model(ids()).logits, before)
    assert not [n for m in model.modules() for n in vars(m) if n.startswith("_symground")]
    assert not model._forward_pre_hooks
    assert not model.base_model._forward_pre_hooks
    assert model.config._attn_implementation != "symground"


def test_under_autocast_models_without_attention_run_too() -> None:
    mask = torch.ones(2, T, dtype=torch.long)
    mask[0, :3] = 0
    for build in (mamba2, lstm):
        model = sg.attach(build())
        whole = sg.trace(model, ids(), torch.tensor([5, 7]), mask)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                traced = sg.trace(model, ids(), torch.tensor([5, 7]), mask)
            np.testing.assert_allclose(traced.surprisal, whole.surprisal, atol=0.1)
            for name in {"saliency", "input_x_gradient"} & set(traced):
                off = np.linalg.norm(traced[name] - whole[name]) / np.linalg.norm(whole[name])
                assert off < 16 * torch.finfo(dtype).eps, name


def test_a_model_may_be_attached_while_it_is_trained() -> None:
    """A new model is in training mode, with dropout."""
    sizes = {"vocab_size": 101, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 2}
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None, resid_pdrop=0.5)
    )
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert sg.attach(model) is model
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match=r"model: expected model\.eval\(\)"):
        sg.trace(model, ids(), torch.tensor([5, 7]))


@pytest.mark.parametrize("name", ["Llama", "Bert"])
def test_a_model_that_shares_an_attached_ones_configuration_computes_the_same_and_gives_no_matrix(name: str) -> None:
    config = getattr(transformers, f"{name}Config")(**SIZES)
    kind = getattr(transformers, {"Llama": "LlamaForCausalLM", "Bert": "BertForMaskedLM"}[name])
    other = kind(config).eval()
    with torch.no_grad():
        before = other(ids()).logits
        sg.attach(kind(config).eval())
        torch.testing.assert_close(other(ids()).logits, before)
    with pytest.raises(ValueError, match=r"output_attentions: symground never builds the attention matrix"):
        other(ids(), output_attentions=True)


def _half(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float = 1.0, **kw: Any) -> Any:
    """Attention at half the scale."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = (q @ k.mT * scaling / 2).masked_fill(~torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(), -1e9)
    return (s.softmax(-1) @ v).transpose(1, 2), None


def _usual(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float = 1.0, **kw: Any) -> Any:
    return _half(module, q, k, v, mask, 2 * scaling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", [_half, _usual])
def test_a_users_attention_function_is_compared_with_ours(function: Callable[..., Any], dtype: torch.dtype) -> None:
    transformers.AttentionInterface.register("users", function)
    model = llama().to(dtype)
    with torch.no_grad():
        for layer in model.model.layers:  # so that the scores are far from 0
            layer.self_attn.q_proj.weight.mul_(100)
    model.set_attn_implementation("users")
    before = model(ids()).logits
    if dtype == torch.float32 and function is _usual:
        torch.testing.assert_close(sg.attach(model)(ids()).logits, before)
        return
    wanted = "computes something else" if dtype == torch.float32 else "'users', a function of tests, which symground's"
    with pytest.raises(ValueError, match=wanted):
        sg.attach(model)
    assert model.config._attn_implementation == "users"
    assert torch.equal(model(ids()).logits, before)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("BigBirdPegasus", {"attention_type": "original_full", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
                            "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
                            "decoder_ffn_dim": 48}),
        ("Doge", {"num_key_value_heads": 2}),
    ],
)  # fmt: skip
def test_a_model_without_a_vocabulary_that_would_not_run_is_refused_when_attaching(
    kind: str, settings: dict[str, Any]
) -> None:
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, "pad_token_id": 0, **settings})
    model = getattr(transformers, f"{kind}Model")(config).eval()
    given = {"input_ids": ids(), **({"decoder_input_ids": ids()} if config.is_encoder_decoder else {})}
    with torch.no_grad():
        before = model(**given)[0]
        with pytest.raises(ValueError, match=rf"{kind}\w* .*{kind}Model"):
            sg.attach(model)
        assert torch.equal(model(**given)[0], before)
