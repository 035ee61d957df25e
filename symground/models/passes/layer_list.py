"""The decoder's layers, in the order in which the hidden states pass them."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from symground.models.attachment import mixers


def decoder_layers(model: PreTrainedModel) -> tuple[list[nn.Module], dict[int, int]]:
    """The layers in the order of the forward pass, and a dictionary: number of a mixer's layer → index among them."""
    lists = _lists(model, False)
    if len(lists) != 1:
        raise ValueError(f"model: expected its layers in one list, found {len(lists)} in {type(model).__name__}")
    ((name, at),) = lists.items()
    return list(model.get_submodule(name).children()), at


def all_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of all parts of a model that are traced."""
    return [layer for name in _lists(model, True) for layer in model.get_submodule(name).children()]


def _lists(model: PreTrainedModel, vision: bool) -> dict[str, dict[int, int]]:
    """Path of a list of layers → number of a mixer's layer → index in the list."""
    names = {module: name for name, module in model.named_modules()}
    lists: dict[str, dict[int, int]] = {}
    for mixer in mixers(model, vision=vision):
        parts = names[mixer.module].split(".")
        number = next(i for i in reversed(range(len(parts))) if parts[i].isdigit())
        lists.setdefault(".".join(parts[:number]), {})[mixer.layer] = int(parts[number])
    return lists
