"""The output projection of a mixer, located in a forward pass, and each head's contribution to its layer's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from symground.models.attachment import mixers
from symground.models.hooks import Mixer, body, head_outputs, hooked, is_plain, untapped
from symground.models.trials import readout, trial_ids, tried


def output_projections(model: PreTrainedModel) -> dict[int, nn.Module]:
    """layer → its output projection, the module whose input is its heads' outputs side by side, [B,T,H·D] → [B,T,E].

    The modules are located in a forward pass of a few tokens.

    Raises:
        ValueError: in some layer, the heads' outputs are not the input of a module of the mixer.
    """
    layers = mixers(model)
    return tried(model, "projections", lambda: _located(model, layers))


def _located(model: PreTrainedModel, layers: tuple[Mixer, ...]) -> dict[int, nn.Module]:
    found: dict[int, nn.Module] = {}
    with torch.no_grad(), untapped(), head_outputs(layers) as heads:

        def watch(layer: int) -> Any:
            def called(module: nn.Module, args: tuple[Any, ...]) -> None:
                if layer in heads and layer not in found and args and isinstance(args[0], Tensor):
                    given, expected = args[0], heads[layer]
                    if given.numel() == expected.numel() and torch.equal(given.reshape(expected.shape), expected):
                        found[layer] = module

            return called

        parts = ((x.layer, name, module) for x in layers for name, module in x.module.named_modules())
        with hooked(*((module, watch(layer)) for layer, name, module in parts if name), before=True):
            body(model)(input_ids=trial_ids(model, 3).to(readout(model).weight.device))
    for mixer in layers:
        if mixer.layer not in found:
            raise ValueError(
                f"model: the heads of layer {mixer.layer} of {type(model).__name__} do not go straight into an output "
                "projection"
            )
    return found


def head_weights(model: PreTrainedModel, layer: int, projection: nn.Module | None = None) -> Tensor:
    """The weight of a layer's output projection by head [H,D,E]; with ``projection`` None, the module is located first.

    Raises:
        ValueError: as :func:`output_projections`; the projection is neither Linear nor GPT-2's transposed one; or a
            hook or a forward function of another library changes its output.
    """
    projection = output_projections(model)[layer] if projection is None else projection
    if not any(is_plain(projection, kind) for kind in (nn.Linear, Conv1D)):
        kind = type(projection)
        added = (
            " changed by a hook or another forward function"
            if kind in (nn.Linear, Conv1D)
            else f" of {kind.__module__}"
        )
        raise ValueError(f"model: the output projection of layer {layer} is a {kind.__name__}{added}")
    weight: Tensor = projection.weight  # type: ignore[assignment]
    heads = next(mixer.heads for mixer in mixers(model) if mixer.layer == layer)
    matrix = weight if isinstance(projection, Conv1D) else weight.T  # [H·D,E]
    by_head: Tensor = matrix.unflatten(0, (heads, -1))
    return by_head


def contributions(model: PreTrainedModel, layer: int, outputs: Tensor) -> Tensor:
    """Each head's contribution to its layer's output [...,H,E], from the ``outputs`` [...,H,D] of the heads.

    Their sum over heads plus the projection's bias is the mixer's output.
    """
    return torch.einsum("...hd,hde->...he", outputs, head_weights(model, layer))
