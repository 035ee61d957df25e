"""The decoder's layers, in the order in which the hidden states pass them."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from symground.models.attachment import mixers


def decoder_layers(model: PreTrainedModel) -> tuple[list[nn.Module], dict[int, int]]:
    """The layers in the order of the forward pass, and a dictionary: number of a mixer's layer → index among them."""
    names = {module: name for name, module in model.named_modules()}
    lists: dict[str, dict[int, int]] = {}
    for mixer in mixers(model):
        parts = names[mixer.module].split(".")
        number = next(i for i in reversed(range(len(parts))) if parts[i].isdigit())
        lists.setdefault(".".join(parts[:number]), {})[mixer.layer] = int(parts[number])
    if len(lists) != 1:
        raise ValueError(f"model: expected its layers in one list, found {len(lists)} in {type(model).__name__}")
    ((name, at),) = lists.items()
    return list(model.get_submodule(name).children()), at
