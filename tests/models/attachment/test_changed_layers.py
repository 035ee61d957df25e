"""A model whose layers or attention changed after it was attached."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import symground as sg
from tests.models.attachment.builders import gpt2, ids, llama, mamba2


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


def one_more_inside_a_module_without(model: Any) -> None:
    """A mixer put into a module of a layer that held none."""
    decoder, name = stack_of(model)
    layer = getattr(decoder, name)[1]
    mixer = next(part for part in layer.children() if hasattr(part, "layer_idx"))
    without = next(part for part in layer.children() if part is not mixer)
    without.add_module("further", copy.deepcopy(mixer))


#: name → (a change to the layers of an attached model, whether the model can be attached again)
NEW_LAYERS: dict[str, tuple[Callable[[Any], None], bool]] = {
    "another layer": (another_layer, True),
    "another mixer": (another_mixer, True),
    "the first pruned": (layers_of(lambda layers: layers[1:]), True),
    "the last pruned": (layers_of(lambda layers: layers[:-1]), True),
    "one more": (layers_of(lambda layers: [*layers, copy.deepcopy(layers[-1])]), False),
    "one twice": (layers_of(lambda layers: [layers[0], *layers]), False),
    "one more, inside a module without": (one_more_inside_a_module_without, False),
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
