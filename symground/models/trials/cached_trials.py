"""Trials: what is found out about a model by running it, and for how long that is believed.

An outcome holds while nothing that it may depend on has changed: which modules there are, of which classes, their
settings, hooks and forward functions, and each weight (which tensor it is, how often it was written to, and one of its
numbers, since a change through ``.data`` is not counted). Where something could change unseen (hooks, forward
functions or classes of others, which may hold a state of their own) nothing is believed, and every call tries again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from symground.models.hooks import given_forward, hooked_by_others, hooks_of, hooks_of_all, is_ours, is_trusted

T = TypeVar("T")
_KNOWN: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, Any]]] = WeakKeyDictionary()
_SETTINGS = {bool, int, float, str, type(None), torch.dtype, torch.device}
_LISTS = {list, tuple, set, frozenset}
_OF_EVERY_MODULE = set(vars(nn.Module())) - {"training"}


def tried(model: nn.Module, name: str, trial: Callable[[], T], if_hooked: Callable[[], T] | None = None) -> T:
    """What the trial of that name gives for the model as it is now.

    With hooks or forward functions of others, which may act by position, by length or on the logits, no few tokens tell
    what others give: ``if_hooked``, where it is given, stands for the trial.
    """
    if if_hooked is not None and hooked_by_others(model):
        return if_hooked()
    state = state_of(model)
    if state is None:
        return trial()
    known = _KNOWN.setdefault(model, {})
    if name not in known or known[name][0] != state:
        known[name] = state, trial()
    outcome: T = known[name][1]
    return outcome


@torch.no_grad()
def state_of(model: nn.Module) -> tuple[Any, ...] | None:
    """All that the outcome of a trial may depend on; None where that cannot be told."""
    if hooks_of_all():
        return None
    found: list[Any] = []
    tensors: list[Tensor] = []
    configurations: dict[int, Any] = {}
    for module in model.modules():
        kind, own, hooks = type(module), given_forward(module), hooks_of(module)
        if not is_trusted(kind) or (own is not None and not is_trusted(own)) or not all(map(is_trusted, hooks)):
            return None
        # By number, or what is remembered would keep the model alive.
        found += (id(module), kind, kind.forward, id(own), *(id(f) for f in hooks if not is_ours(f)))
        values = dict(vars(module))
        _add_settings(values, found)
        tensors += values["_parameters"].values()
        tensors += values["_buffers"].values()
        if "config" in values:
            configurations[id(values["config"])] = values["config"]
    for config in configurations.values():
        _add_settings(dict(vars(config)), found)
    tensors = [x for x in tensors if x is not None]
    found += [(id(x), x.data_ptr() if _is_there(x) else 0, _version(x), x.dtype, x.shape) for x in tensors]
    found += _numbers(tensors)
    return tuple(found)


def _add_settings(values: dict[Any, Any], found: list[Any]) -> None:
    """Names and values of plain settings, those within lists and dictionaries too."""
    for name, value in values.items():
        kind = type(value)
        if kind in _SETTINGS:
            if name not in _OF_EVERY_MODULE:
                found += (name, value)
        elif kind in _LISTS:
            found += (name, len(value))
            _add_settings(dict(enumerate(value)), found)
        elif kind is dict and name not in _OF_EVERY_MODULE:
            found += (name, len(value))
            _add_settings(value, found)


def _is_there(x: Tensor) -> bool:
    return not x.is_meta and x.layout == torch.strided


def _version(x: Tensor) -> int:
    return -1 if x.is_inference() else x._version


def _numbers(tensors: list[Tensor]) -> list[float]:
    """The first of each tensor."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for x in tensors:
        if _is_there(x) and x.numel():
            alike.setdefault((x.device, x.dtype), []).append(x.as_strided((1,), (1,), x.storage_offset()))
    # All of a device at once, since a GPU is waited for.
    return [number for first in alike.values() for number in torch.cat(first).double().nan_to_num(0.0).tolist()]
