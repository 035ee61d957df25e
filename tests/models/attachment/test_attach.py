"""Attaching: masks of every form, detaching, and refusals that say what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

import symground as sg
from symground.models.architectures.lstm import LSTMConfig, LSTMForCausalLM

_SIZES = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4}
T = 9


def llama(**more: Any) -> LlamaForCausalLM:
    return _drawn(LlamaForCausalLM(LlamaConfig(**{**_SIZES, "num_key_value_heads": 2, **more})))


def mistral(window: int | None = 4) -> MistralForCausalLM:
    return _drawn(MistralForCausalLM(MistralConfig(**_SIZES, num_key_value_heads=2, sliding_window=window)))


def gpt2() -> GPT2LMHeadModel:
    return _drawn(
        GPT2LMHeadModel(GPT2Config(vocab_size=101, n_positions=64, **_OLD, bos_token_id=None, eos_token_id=None))
    )


def mamba2() -> Mamba2ForCausalLM:
    sizes = {"hidden_size": 32, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "num_hidden_layers": 2}
    return _drawn(Mamba2ForCausalLM(Mamba2Config(vocab_size=101, **sizes, bos_token_id=None, eos_token_id=None)))


def lstm() -> LSTMForCausalLM:
    return _drawn(LSTMForCausalLM(LSTMConfig(vocab_size=101, hidden_size=16, num_hidden_layers=2)))


def _drawn(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def ids(count: int = 2, seed: int = 1) -> Tensor:
    return torch.randint(1, 101, (count, T), generator=torch.Generator().manual_seed(seed))


def sdpa(model: PreTrainedModel, mask: Tensor | None, **inputs: Any) -> Tensor:
    """Logits of the same weights under the attention implementation that transformers chooses."""
    twin = type(model)(copy.deepcopy(model.config))
    twin.load_state_dict(model.state_dict())
    twin.set_attn_implementation("sdpa")
    with torch.no_grad():
        return twin.eval()(ids(), attention_mask=mask, **inputs).logits


def causal(window: int | None = None, left: int = 0, right: int = 0) -> Tensor:
    """A causal mask [2,1,T,T] of bools; the first example is padded."""
    i, j = torch.arange(T)[:, None], torch.arange(T)
    seen = (j <= i) & (j > i - (window or T))
    return torch.stack([seen & (j >= left) & (j < T - right), seen])[:, None]


def valid(left: int, right: int) -> Tensor:
    j = torch.arange(T)
    return torch.stack([(j >= left) & (j < T - right), j >= 0])


hidden = st.sampled_from([-1e4, -1e9, torch.finfo(torch.float32).min, float("-inf")])


@given(
    window=st.sampled_from([None, 4]), left=st.integers(0, 3), right=st.integers(0, 3), by=hidden,
    floats=st.booleans(), heads=st.sampled_from([1, 4]),
)  # fmt: skip
def test_a_mask_of_all_pairs_is_what_sdpa_makes_of_it(
    window: int | None, left: int, right: int, by: float, floats: bool, heads: int
) -> None:
    model = mistral(window)
    mask = causal(window, left, right).expand(-1, heads, -1, -1)
    given_mask = torch.zeros(mask.shape).masked_fill(~mask, by) if floats else mask
    there = valid(left, right)
    expected = sdpa(model, given_mask)[there]
    sg.attach(model)
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids(), attention_mask=given_mask).logits[there], expected, atol=1e-5, rtol=1e-4
        )


def test_a_mask_of_all_pairs_for_every_example() -> None:
    model = llama()
    mask = causal()[1:]
    expected = sdpa(model, mask)
    with torch.no_grad():
        torch.testing.assert_close(sg.attach(model)(ids(), attention_mask=mask).logits, expected, atol=1e-5, rtol=1e-4)


def _knocked_out(by: float) -> Tensor:
    mask = torch.zeros(2, 1, T, T).masked_fill(~causal(), torch.finfo(torch.float32).min)
    mask[:, :, 5, 2] = by
    return mask


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (_knocked_out(-1e9), "with padding at the ends only, and this mask of shape .* hides other pairs"),
        (_knocked_out(float("-inf")), "hides other pairs"),
        (_knocked_out(-3.0), "takes no bias of scores: expected 0 .* got -3"),
        (_knocked_out(0.5), "takes no bias of scores.* got 0.5"),
        (_knocked_out(float("nan")), "takes no bias of scores.* got nan"),
        (torch.ones(2, 1, T, T, dtype=torch.bool), "hides other pairs"),
        (causal().long(), r"expected \[B,S\], or bools or floats for all pairs .*; got \[2, 1, 9, 9\] torch.int64"),
        (causal()[..., :4], r"got \[2, 1, 9, 4\] torch.bool"),
    ],
)
def test_a_mask_of_all_pairs_that_is_more_is_refused_and_eager_gets_it(mask: Tensor, why: str) -> None:
    model = sg.attach(llama())
    with pytest.raises(ValueError, match=f"attention_mask: .*{why}"):
        model(ids(), attention_mask=mask)
    if mask.is_floating_point():  # symground does not act while another attention implementation is set
        expected = sdpa(model, mask)
        model.set_attn_implementation("sdpa")
        with torch.no_grad():
            assert torch.equal(model(ids(), attention_mask=mask).logits, expected) or bool(expected.isnan().any())


def test_a_mask_without_the_layers_window_is_refused() -> None:
    """SDPA would attend beyond the window."""
    with pytest.raises(ValueError, match="supports causal masks with this layer's window of 4 keys and with padding"):
        sg.attach(mistral(4))(ids(), attention_mask=causal())


@pytest.mark.parametrize("build", [llama, gpt2, mistral, mamba2, lstm])
def test_numbers_above_1_are_valid_tokens(build: Callable[[], PreTrainedModel]) -> None:
    """A packing collator makes such masks; transformers reads them as bool."""
    model = sg.attach(build())
    mask = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 3, 3], [1] * 4 + [2] * 5])
    with torch.no_grad():
        found, expected = (model(ids(), attention_mask=m).logits for m in (mask, mask.bool().long()))
        assert torch.equal(found, expected)
        positional = model.base_model(ids(), mask)[0] if isinstance(model, LlamaForCausalLM) else None
    if positional is not None:  # the result is the same if the mask is a positional argument
        torch.testing.assert_close(model.lm_head(positional), expected)
    with pytest.raises(ValueError, match=r"attention_mask: expected 0 and 1 .* got 2"):
        sg.trace(model, ids(), torch.tensor([5, 7]), mask)


def test_with_another_attention_positions_are_transformers_own() -> None:
    model = sg.attach(llama())
    mask = torch.ones(2, T, dtype=torch.long)
    mask[0, :3] = 0
    expected = sdpa(model, mask)
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        assert torch.equal(model(ids(), attention_mask=mask).logits, expected)


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
    "Cohere-2": (
        lambda: transformers.Cohere2ForCausalLM(transformers.Cohere2Config(**_SIZES, num_key_value_heads=2)),
        "logits of Cohere2ForCausalLM are more than its head's product",
    ),
    "Granite": (
        lambda: transformers.GraniteForCausalLM(transformers.GraniteConfig(**_SIZES, logits_scaling=4.0)),
        "logits of GraniteForCausalLM are more than",
    ),
    "BERT": (
        lambda: transformers.BertLMHeadModel(transformers.BertConfig(**_SIZES)),
        r"lets text see what follows it \(is_decoder=False in its configuration\)",
    ),
    "GPT-Neo": (
        lambda: transformers.GPTNeoForCausalLM(
            transformers.GPTNeoConfig(
                **{**_SIZES, "num_layers": 2, "num_heads": 4}, attention_types=[[["global", "local"], 1]]
            )
        ),
        "layers of GPTNeoForCausalLM mix positions by GPTNeoAttention, GPTNeoSelfAttention: symground sees no heads",
    ),
    "XGLM": (
        lambda: transformers.XGLMForCausalLM(
            transformers.XGLMConfig(vocab_size=101, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4)
        ),
        "mix positions by XGLMAttention",
    ),
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
    "OpenAI GPT": (
        lambda: transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(vocab_size=101, n_positions=64, **_OLD)),
        "mix positions by Attention",
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
        assert "symground.score takes the model as transformers loads it" in str(refusal.value)
    with torch.no_grad():
        assert torch.equal(model(ids()).logits, before)
    assert not [n for m in model.modules() for n in vars(m) if n.startswith("_symground")]
    assert not model._forward_pre_hooks
    assert not model.base_model._forward_pre_hooks
    assert model.config._attn_implementation != "symground"


@pytest.mark.parametrize("window", [3, 20])
def test_without_attaching_a_window_that_is_not_told_is_refused(window: int) -> None:
    """PhiMoE's masks have a window that its layers do not pass to the attention function."""
    sizes = {**_SIZES, "num_key_value_heads": 2, "num_local_experts": 2, "sliding_window": window}
    model = transformers.PhimoeForCausalLM(transformers.PhimoeConfig(**sizes, attn_implementation="symground")).eval()
    if window < T:
        with pytest.raises(
            ValueError, match=r"mask has a sliding window of 3 keys, and PhimoeAttention tells .* of no"
        ):
            model(ids())
        return
    expected = sdpa(model, None)
    with torch.no_grad():
        torch.testing.assert_close(model(ids()).logits, expected, atol=1e-4, rtol=1e-4)


def test_without_attaching_a_window_that_only_the_layers_tell_is_refused() -> None:
    """OLMoE's layers pass a window that its masks do not have."""
    sizes = {**_SIZES, "num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1}
    model = transformers.OlmoeForCausalLM(transformers.OlmoeConfig(**sizes, attn_implementation="symground")).eval()
    model.config.sliding_window = 3
    with pytest.raises(
        ValueError, match="mask has no sliding window, and OlmoeAttention tells .* of a sliding window of 3"
    ):
        model(ids())


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


def stack_of(model: Any) -> tuple[nn.Module, str]:
    """The module that contains a decoder's list of layers, and the list's name."""
    decoder = model.base_model
    name = next(name for name, part in decoder.named_children() if isinstance(part, nn.ModuleList))
    return decoder, name


def another_layer(model: Any) -> None:
    decoder, name = stack_of(model)
    getattr(decoder, name)[1] = copy.deepcopy(getattr(decoder, name)[1])


def another_mixer(model: Any) -> None:
    decoder, name = stack_of(model)
    layer = getattr(decoder, name)[1]
    mixer = next(part for part, module in layer.named_children() if hasattr(module, "layer_idx"))
    setattr(layer, mixer, copy.deepcopy(getattr(layer, mixer)))


def layers_of(order: Callable[[list[nn.Module]], list[nn.Module]]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        decoder, name = stack_of(model)
        setattr(decoder, name, nn.ModuleList(order(list(getattr(decoder, name)))))

    return change


#: name → (a change to the layers of an attached model, whether the model can be attached again)
NEW_LAYERS: dict[str, tuple[Callable[[Any], None], bool]] = {
    "another layer": (another_layer, True),
    "another mixer": (another_mixer, True),
    "the first pruned": (layers_of(lambda layers: layers[1:]), True),
    "the last pruned": (layers_of(lambda layers: layers[:-1]), True),
    "one more": (layers_of(lambda layers: [*layers, copy.deepcopy(layers[-1])]), False),
    "one twice": (layers_of(lambda layers: [layers[0], *layers]), False),
    "turned round": (layers_of(lambda layers: layers[::-1]), False),
}


@pytest.mark.parametrize("change", NEW_LAYERS)
@pytest.mark.parametrize("make", [llama, gpt2, mamba2])
def test_layers_that_changed_since_are_refused_until_attached_again(make: Callable[[], Any], change: str) -> None:
    model = sg.attach(make()).eval()
    ids = torch.randint(3, 40, (2, 6))
    apply, again = NEW_LAYERS[change]
    apply(model)
    for call in (
        lambda: sg.ablate(model, [(1, 0)]).__enter__(),
        lambda: sg.trace(model, ids, torch.tensor([4, 5])),
        lambda: sg.trace_memory(model, 8),
    ):
        with pytest.raises(ValueError, match="no longer those that symground.attach saw; attach the model again"):
            call()
    if not again:
        with pytest.raises(ValueError, match=r"in the order of their numbers|have the same number"):
            sg.attach(model)
        return
    sg.attach(model)
    traced = sg.trace(model, ids, torch.tensor([4, 5]))
    with torch.no_grad():
        own = -model(ids).logits[:, -1].log_softmax(-1)[torch.arange(2), torch.tensor([4, 5])]
        plain = model(ids, use_cache=False).logits
        for layer in traced.layer.values.tolist():
            with sg.ablate(model, [(layer, 0)]):
                assert not torch.allclose(model(ids, use_cache=False).logits, plain)
    np.testing.assert_allclose(traced.surprisal, own, atol=1e-5)


@pytest.mark.parametrize("block", ["ablate", "steer"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_another_attention_within_a_block_is_refused_and_not_passed_by(make: Callable[[], Any], block: str) -> None:
    model = sg.attach(make())
    entered = sg.ablate(model, [(1, 0)]) if block == "ablate" else sg.steer(model, [(1, 0)], 2.0)
    with entered:
        model.set_attn_implementation("sdpa")
        with pytest.raises(ValueError, match="its attention was set to 'sdpa' within a block that silences"):
            model(ids())
    model(ids())  # after the block the model runs as usual
