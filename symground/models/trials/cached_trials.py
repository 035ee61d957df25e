"""Trials test a property of a model by a forward pass, and their outcomes are cached.

An outcome is valid until something that it may depend on changes: the modules, their classes, settings, hooks and
forward functions, and each weight (the tensor, its version, and its first number, because the version does not count
changes through ``.data``). Hooks, forward functions and classes of other code may have a state that changes unnoticed.
If a model has any, nothing is cached, and every call runs the trial again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from symground.models.hooks import given_forward, hooked_by_others, hooks_of, hooks_of_all, is_ours, is_trusted

T = TypeVar("T")
_KNOWN: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, Any]]] = WeakKeyDictionary()
_SETTINGS = {bool, int, float, str, type(None), torch.dtype, torch.device}
_LISTS = {list, tuple, set, frozenset}
_OF_EVERY_MODULE = set(vars(nn.Module())) - {"training"}


def tried(model: nn.Module, name: str, trial: Callable[[], T], if_hooked: Callable[[], T] | None = None) -> T:
    """The outcome of the trial ``name`` for the model as it is now.

    A few tokens do not show what hooks or forward functions of other code do to other positions, lengths or logits. If
    the model has any, ``if_hooked``, unless it is None, is called in place of the trial.
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
    """All that the outcome of a trial may depend on, or None if that is not known."""
    if hooks_of_all():
        return None
    found: list[Any] = []
    tensors: list[Tensor] = []
    configurations: dict[int, Any] = {}
    for module in model.modules():
        kind, own, hooks = type(module), given_forward(module), hooks_of(module)
        if not is_trusted(kind) or (own is not None and not is_trusted(own)) or not all(map(is_trusted, hooks)):
            return None
        # Ids are compared, because references in the cache would keep the model alive.
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
    """Add names and values of plain settings, including those within lists and dictionaries."""
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


def _plain(x: Tensor) -> list[Tensor]:
    """The tensors that hold the numbers of a tensor, which may be of another class (torchao's quantised weights)."""
    if is_traceable_wrapper_subclass(x):
        names, _ = x.__tensor_flatten__()
        return [part for name in names for part in _plain(getattr(x, name))]
    computes = type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__
    return [] if computes else [x]  # of one that cannot be taken apart, only the version tells of changes


def _is_there(x: Tensor) -> bool:
    return not x.is_meta and x.layout == torch.strided


def _version(x: Tensor) -> int:
    return -1 if x.is_inference() else x._version


def _numbers(tensors: list[Tensor]) -> list[float]:
    """The first number of each tensor."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for x in (part for whole in tensors for part in _plain(whole)):
        if _is_there(x) and x.numel():
            alike.setdefault((x.device, x.dtype), []).append(x.as_strided((1,), (1,), x.storage_offset()))
    # The numbers of a device are read at once, because each read waits for the GPU.
    return [number for first in alike.values() for number in torch.cat(first).double().nan_to_num(0.0).tolist()]
