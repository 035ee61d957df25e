"""Where heads go: the output projection of a mixer, found by watching it run, and what each head adds to a layer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from symground.models.attach import mixers
from symground.models.mixers import Mixer, head_outputs, untapped
from symground.models.readout import readout, trial_ids

_PROJECTION = "_symground_projection"


def output_projections(model: PreTrainedModel) -> dict[int, nn.Module]:
    """layer → the module that takes its heads' outputs side by side, [B,T,H·D] → [B,T,E].

    Found by running a few tokens, once per model.

    Raises:
        ValueError: a layer whose heads do not go straight into a module of its mixer.
    """
    layers = mixers(model)
    if any(_PROJECTION not in vars(mixer.module) for mixer in layers):
        _locate(model, layers)
    return {mixer.layer: vars(mixer.module)[_PROJECTION][0] for mixer in layers}


def _locate(model: PreTrainedModel, layers: tuple[Mixer, ...]) -> None:
    found: dict[int, nn.Module] = {}
    with ExitStack() as stack, torch.no_grad(), untapped(model):
        heads = stack.enter_context(head_outputs(layers))

        def watch(layer: int) -> Any:
            def called(module: nn.Module, args: tuple[Any, ...]) -> None:
                if layer in heads and layer not in found and args and isinstance(args[0], Tensor):
                    given, expected = args[0], heads[layer]
                    if given.numel() == expected.numel() and torch.equal(given.reshape(expected.shape), expected):
                        found[layer] = module

            return called

        for mixer in layers:
            for name, module in mixer.module.named_modules():
                if name:
                    stack.callback(module.register_forward_pre_hook(watch(mixer.layer)).remove)
        model.base_model(input_ids=trial_ids(model, 3).to(readout(model).weight.device))
    for mixer in layers:
        if mixer.layer not in found:
            raise ValueError(
                f"model: the heads of layer {mixer.layer} of {type(model).__name__} do not go straight into an output "
                "projection"
            )
        # In a tuple: as an attribute the module would be registered a second time, and saved twice.
        object.__setattr__(mixer.module, _PROJECTION, (found[mixer.layer],))


def head_weights(model: PreTrainedModel, layer: int) -> Tensor:
    """What the output projection of a layer does with each head: [H,D,E].

    Raises:
        ValueError: as :func:`output_projections`, or a projection that is neither Linear nor GPT-2's transposed one.
    """
    projection = output_projections(model)[layer]
    if type(projection) not in (nn.Linear, Conv1D):
        raise ValueError(f"model: the output projection of layer {layer} is a {type(projection).__name__}")
    weight: Tensor = projection.weight  # type: ignore[assignment]
    heads = next(mixer.heads for mixer in mixers(model) if mixer.layer == layer)
    matrix = weight if isinstance(projection, Conv1D) else weight.T  # [H·D,E]
    by_head: Tensor = matrix.unflatten(0, (heads, -1))
    return by_head


def contributions(model: PreTrainedModel, layer: int, outputs: Tensor) -> Tensor:
    """What each head adds to its layer's output [...,H,E], from the ``outputs`` [...,H,D] of the heads.

    Their sum over heads, with the projection's bias, is what the mixer gives.
    """
    return torch.einsum("...hd,hde->...he", outputs, head_weights(model, layer))
