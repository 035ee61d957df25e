"""Output projections, contributions of heads, and passes from a middle layer, in architectures of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen3Config,
)

import symground as sg
from symground.models import mixers
from symground.models.hooks.mixers import head_outputs
from symground.models.passes.output_projection import contributions, output_projections
from symground.models.passes.partial_forward import Replay, replays
from symground.models.trials.output_head import hidden_states

SIZE = {
    "vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 32, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
CONFIGS = {
    "llama, grouped keys": LlamaConfig(**SIZE, num_key_value_heads=2),
    "gpt-neox, parallel": GPTNeoXConfig(**SIZE),
    "qwen3, wide heads": Qwen3Config(**SIZE, num_key_value_heads=2, head_dim=16),
    "olmo2, norms after": Olmo2Config(**SIZE),
    "phi": PhiConfig(**SIZE),
    "opt": OPTConfig(
        vocab_size=101, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=40, word_embed_proj_dim=32,
        max_position_embeddings=32,
    ),
}  # fmt: skip
NAMES = ["gpt2", *CONFIGS]


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    if request.param == "gpt2":
        found: PreTrainedModel = request.getfixturevalue("gpt2")
        return found
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    with torch.no_grad():  # with the usual deviation of 0.02, heads would have almost no effect
        for weight in made.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)
    return sg.attach(made.eval())


def some_ids(rows: int = 3, length: int = 6) -> torch.Tensor:
    return torch.randint(2, 101, (rows, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_contributions_of_all_heads_sum_to_the_layers_output(model: PreTrainedModel) -> None:
    given: dict[int, torch.Tensor] = {}
    for mixer in mixers(model):
        mixer.module.register_forward_hook(lambda module, args, out, i=mixer.layer: given.__setitem__(i, out[0]))
    with head_outputs(mixers(model)) as heads:
        model(some_ids())
    mixed = dict(given)  # locating the projections runs the model again
    for layer, outputs in heads.items():
        bias = getattr(output_projections(model)[layer], "bias", None)
        total = contributions(model, layer, outputs).sum(2)
        torch.testing.assert_close(total + (0 if bias is None else bias), mixed[layer])


@torch.no_grad()
@pytest.mark.parametrize(
    ("last_only", "shared", "keep"),
    [(False, 0, 1), (False, 1, 1), (False, 4, 1), (False, 9, 1), (True, 0, 1), (False, 0, 2), (False, 4, 3)],
)
def test_reading_again_from_the_middle_is_the_model_with_heads_silenced(
    model: PreTrainedModel, last_only: bool, shared: int, keep: int
) -> None:
    assert replays(model, last_only, keep=keep)
    ids = some_ids()
    ids[:, :shared] = ids[:1, :shared]
    replay = Replay(model, ids, last_only, shared, keep)
    torch.testing.assert_close(replay.final, hidden_states(model, ids)[:, -keep:], atol=1e-5, rtol=1e-5)
    where = torch.arange(6) == 5 if last_only else None
    other = some_ids().flip(0)
    other[:, :shared] = other[:1, :shared]
    with head_outputs(mixers(model)) as fills:
        model(other)
    for mixer in mixers(model):
        for fill, mode in ((None, "zero"), (fills[mixer.layer], "resample")):
            found = replay.silenced(mixer.layer, slice(1, None), fill)
            assert found.shape[:2] == (mixer.heads - 1, 3)
            for head in range(1, mixer.heads):
                with sg.ablate(
                    model, [(mixer.layer, head)], mode, other if fill is not None else None, positions=where
                ):
                    expected = hidden_states(model, ids)[:, -keep:]
                if mode == "zero":
                    assert not torch.allclose(expected, replay.final, atol=1e-4)
                torch.testing.assert_close(found[head - 1], expected, atol=2e-5, rtol=1e-4)


def test_the_model_is_left_as_it_was(gpt2: GPT2LMHeadModel) -> None:
    ids, names = some_ids(), set(gpt2.state_dict())
    forwards = [vars(module).get("forward") for module in gpt2.modules()]
    before = gpt2(ids).logits
    with torch.no_grad():
        for last_only, shared in ((False, 0), (False, 3), (True, 0)):
            Replay(gpt2, ids[:1], last_only, shared).silenced(1, slice(None))
    assert torch.equal(gpt2(ids).logits, before)
    assert set(gpt2.state_dict()) == names
    assert [vars(module).get("forward") for module in gpt2.modules()] == forwards
    assert all(mixer.tap.idle for mixer in mixers(gpt2))


def test_a_model_that_is_more_than_its_layers_is_told(gpt2: GPT2LMHeadModel) -> None:
    first, last = gpt2.transformer.h[0], gpt2.transformer.h[2]
    kept: list[torch.Tensor] = []
    first.register_forward_hook(lambda module, args, out: kept.__setitem__(slice(None), [args[0]]))
    last.mlp.register_forward_hook(lambda module, args, out: out + kept[0][: len(out), -out.shape[1] :].mean(1, True))
    with pytest.warns(RuntimeWarning, match="cannot be read again from the middle"):
        assert not replays(gpt2)
    assert not replays(gpt2)  # the warning is given once


def test_a_head_that_does_not_go_into_a_projection_is_told(gpt2: GPT2LMHeadModel) -> None:
    gpt2.transformer.h[1].attn.c_proj.register_forward_pre_hook(lambda module, args: (args[0] * 2,), prepend=True)
    with pytest.raises(ValueError, match="heads of layer 1 of GPT2LMHeadModel do not go straight"):
        output_projections(gpt2)


def test_the_heads_seen_are_those_that_are_left(gpt2: GPT2LMHeadModel) -> None:
    with sg.ablate(gpt2, [(1, 2)]), head_outputs(mixers(gpt2)) as found:
        gpt2(some_ids())
    assert found[1].shape == (3, 6, 3, 8)
    assert not found[1][:, :, 2].any()
    assert found[1][:, :, :2].all()
