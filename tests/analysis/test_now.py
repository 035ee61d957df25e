"""Measurements are of the model as it is now, whatever was changed since the last measurement."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import symground as sg
from symground.analysis import Probes
from symground.analysis.causal.silenced import behaviour
from symground.analysis.probing.answering import choices
from symground.data import Corpus
from symground.models.trials.cached_trials import state_of
from tests.analysis.changes import CHANGES, adapt, on_layer, replace_forward
from tests.analysis.spelled import spelled


@pytest.fixture
def model(corpus: Corpus) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(corpus.tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=40, max_position_embeddings=64, pad_token_id=None, bos_token_id=None,
        eos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    return sg.attach(LlamaForCausalLM(config)).eval()


@pytest.fixture
def probes(corpus: Corpus) -> Probes:
    return sg.probes(corpus.tokenizer, nouns=["ball", "book", "box"]).take_contexts([0, 5])


@torch.no_grad()
def own_surprisal(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """[B,V] surprisals after each row, from the model's own logits in a pass of its own."""
    rows = [model(row[None], use_cache=False).logits[0, -1].float() for row in ids]
    return -torch.stack(rows).log_softmax(-1)


def measured(model: PreTrainedModel, probes: Probes) -> Iterator[tuple[str, Any, Any]]:
    """(name, measured, expected) of each measurement."""
    for name, (found, expected) in measures(model, probes).items():
        if isinstance(found, ValueError):
            raise found
        yield name, found, expected


def measures(model: PreTrainedModel, probes: Probes) -> dict[str, tuple[Any, Any]]:
    """name → (measured or its ValueError, expected)."""
    examples = probes.matched()
    contexts = [row[: p + 1] for row, p in zip(examples.input_ids, examples.prediction.tolist(), strict=True)]

    def alone() -> Tensor:
        return torch.cat([own_surprisal(model, context[None]) for context in contexts])  # [N,V]

    def score() -> Any:
        table = sg.score(model, probes)
        return table[table.env == table.target]["surprisal"].to_numpy()

    def running() -> Any:
        table = sg.surprisal(model, *spelled(probes), bos=False)
        return table.groupby("text")["surprisal"].last().to_numpy()

    def lens() -> Any:
        table = sg.lens_gain(model, probes)
        return table[table.depth == table.depth.max()].set_index("target")["matched"][by_noun.index].to_numpy()

    each = alone()
    matched = each.gather(1, examples.targets[:, None])[:, 0].numpy()
    by_noun = pd.DataFrame({"noun": examples.noun, "matched": matched}).groupby("noun")["matched"].mean()
    of_asked = (-each[:, examples.targets.unique()]).softmax(-1).amax(-1).numpy()
    found: dict[str, tuple[Callable[[], Any], Any]] = {
        "trace": (lambda: sg.trace(model, probes).surprisal.values, matched),
        "score": (score, matched),
        "surprisal": (running, matched),
        "lens": (lens, by_noun.to_numpy()),
        "choices": (lambda: choices(model, examples).probability, of_asked),  # by the monitor and by steering
        "behaviour": (lambda: behaviour(model, examples, [[]]).target[0], matched),  # by interventions
    }
    for layer, head in ((0, 1), (1, 2)):
        with sg.ablate(model, [(layer, head)]):
            silenced = alone()
        effect = silenced.gather(1, examples.targets[:, None])[:, 0].numpy() - matched
        at = {"layer": layer, "head": head}
        found[f"sweep {layer}.{head}"] = (
            lambda at=at: sg.sweep_heads(model, probes, per_example=True).sel(at).values, effect
        )  # fmt: skip
    return {name: (said(call), expected) for name, (call, expected) in found.items()}


def said(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ValueError as error:
        return error


@pytest.mark.filterwarnings("ignore:.*cannot (be read again|go on)")
@pytest.mark.parametrize("change", CHANGES)
def test_every_measure_is_of_the_model_as_it_is(model: PreTrainedModel, probes: Probes, change: str) -> None:
    before = {name: found for name, found, _ in measured(model, probes)}
    CHANGES[change](model)
    tolerance = {"atol": 0.15, "rtol": 0.05} if change == "half precision" else {"atol": 2e-4, "rtol": 2e-4}
    felt = 0.0
    for name, found, expected in measured(model, probes):
        np.testing.assert_allclose(found, expected, err_msg=name, **tolerance)
        felt = max(felt, float(abs(found - before[name]).max()))
    assert felt > 1e-3


def by_place(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    """A hook that changes a copy of the hidden states or logits [B,T,·] in place."""

    def hook(_module: nn.Module, _args: Any, out: Any) -> Any:
        hidden = (out[0] if isinstance(out, tuple) else out).clone()
        change(hidden)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    return hook


def steer_last(x: Tensor) -> None:
    x[:, -1] += 3.0


def double_seventh(x: Tensor) -> None:
    x[:, 7:8] *= 2


def double_long(x: Tensor) -> None:
    if x.shape[1] > 8:
        x *= 2


def double_all_but_last(x: Tensor) -> None:
    x[:, :-1] *= 2


def not_causal(x: Tensor) -> None:
    x += x.mean(1, keepdim=True)


def mix_batch(x: Tensor) -> None:
    x -= x.mean(0)


def first_of_batch(x: Tensor) -> None:
    x[:1] *= 1.5


def bias_of_a_word(_model: nn.Module, _args: Any, out: Any) -> Any:
    out.logits = out.logits.clone()
    out.logits[..., 9] += 3
    return out


#: Hooks that act by position, length or batch, which a trial of a few tokens, a cache or rows of the head do not show.
PLACED: dict[str, Callable[[PreTrainedModel], Any]] = {
    f"{change.__name__} {where}": lambda m, at=at, change=change: at(m).register_forward_hook(by_place(change))
    for where, at in {"of a layer": on_layer, "of the head": lambda m: m.lm_head}.items()
    for change in (steer_last, double_seventh, double_long, double_all_but_last, not_causal, mix_batch, first_of_batch)
}
PLACED["bias of a word"] = lambda m: m.register_forward_hook(bias_of_a_word)
PLACED["forward of a layer, not causal"] = lambda m: replace_forward(
    on_layer(m), lambda out: by_place(not_causal)(m, (), out)
)


@pytest.mark.filterwarnings("ignore:.*cannot (be read again|go on)")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("hook", PLACED)
def test_what_a_hook_does_by_position_length_or_batch_is_measured_or_refused(
    model: PreTrainedModel, probes: Probes, hook: str, dtype: torch.dtype
) -> None:
    model.to(dtype)
    before = measures(model, probes)
    assert all(not isinstance(found, ValueError) for found, _ in before.values())
    PLACED[hook](model)
    tolerance = {"atol": 2e-4, "rtol": 2e-4} if dtype == torch.float32 else {"atol": 0.3, "rtol": 0.1}
    for name, (found, expected) in measures(model, probes).items():
        if isinstance(found, ValueError):
            assert str(found).startswith("model: "), found
        else:
            np.testing.assert_allclose(found, expected, err_msg=name, **tolerance)
        if name == "score" and "batch" not in hook:
            assert not isinstance(found, ValueError)


def test_chance_in_a_hook_is_refused(model: PreTrainedModel, probes: Probes) -> None:
    on_layer(model).register_forward_hook(by_place(lambda x: x.copy_(nn.functional.dropout(x, 0.2, True))))
    for name, (found, _) in measures(model, probes).items():
        assert isinstance(found, ValueError), name
        assert "two passes of LlamaForCausalLM over the same text differ" in str(found), name


def test_an_adapter_that_does_nothing_yet_is_not_believed_to_do_nothing(model: PreTrainedModel, probes: Probes) -> None:
    adapt(model, begun=False)
    list(measured(model, probes))
    model.lm_head.up.weight.data.normal_()
    for name, found, expected in measured(model, probes):
        np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-4, err_msg=name)


def test_the_gradient_goes_through_what_the_head_is_now(model: PreTrainedModel, probes: Probes) -> None:
    """An adapter changes the direction from which the backward pass of a trace starts."""
    merged = copy.deepcopy(model)
    sg.trace(model, probes)
    adapt(model)
    with torch.no_grad():
        merged.lm_head.weight += model.lm_head.up.weight @ model.lm_head.down.weight
    found, expected = sg.trace(model, probes), sg.trace(merged, probes)
    np.testing.assert_allclose(found.saliency, expected.saliency, atol=1e-6, rtol=1e-3)
    np.testing.assert_allclose(found.flow, expected.flow, atol=1e-6, rtol=1e-3)


def test_a_model_that_scales_its_logits_since_is_refused_or_read_by_its_own(
    model: PreTrainedModel, probes: Probes
) -> None:
    before = sg.score(model, probes)["surprisal"]
    sg.trace(model, probes)

    def scaled(out: Any) -> Any:
        out.logits = out.logits * 0.5
        return out

    replace_forward(model, scaled)
    with pytest.raises(ValueError, match="logits of LlamaForCausalLM do not follow from its last hidden states alone"):
        sg.trace(model, probes)
    assert abs(sg.score(model, probes)["surprisal"] - before).max() > 0.1


def test_a_model_left_alone_is_tried_once(
    model: PreTrainedModel, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    forward = type(model.model).forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        return forward(self, *args, **kwargs)

    ids = probes.matched()
    sg.trace(model, ids)
    monkeypatch.setattr(type(model.model), "forward", counted)
    sg.trace(model, ids)  # another forward function of the class repeats the trial
    passes.clear()
    sg.trace(model, ids)
    assert len(passes) == 1
    handle = model.model.norm.register_forward_hook(lambda *_: None)
    assert state_of(model) is None  # a hook may hold a state of its own
    passes.clear()
    sg.trace(model, ids)
    sg.trace(model, ids)
    assert len(passes) == 2 * 9  # a trace, and trials of randomness, batching, the head and order of two passes each
    handle.remove()


def test_pefts_adapters_switched_on_and_off(model: PreTrainedModel, probes: Probes) -> None:
    import peft

    list(measured(model, probes))
    settings = peft.LoraConfig(r=2, target_modules=["lm_head", "o_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, settings).eval()
    for _ in range(2):
        for name, found, expected in measured(model, probes):
            np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-4, err_msg=name)
        with wrapped.disable_adapter():
            for name, found, expected in measured(model, probes):
                np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-4, err_msg=name)
