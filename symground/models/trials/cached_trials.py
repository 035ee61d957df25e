"""Trials: what is found out about a model by running it, and for how long that is believed.

An outcome holds while nothing that it may depend on has changed: which modules there are, of which classes, their
settings, hooks and forward functions, and each weight (which tensor it is, how often it was written to, and one of its
numbers, since a change through ``.data`` is not counted). Where something could change unseen (hooks, forward
functions or classes of others, which may hold a state of their own) nothing is believed, and every call tries again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from symground.models.hooks import given_forward

T = TypeVar("T")
_KNOWN: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, Any]]] = WeakKeyDictionary()
_OURS = "symground"
#: Their code changes what a module gives only together with something that is looked at.
_TRUSTED = ("torch", "transformers", "accelerate", _OURS)
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


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of this very class, and nothing changes what its forward function gives."""
    own = given_forward(module)
    moved_only = own is None or _root(own) == "accelerate"
    return type(module) is kind and moved_only and not _hooks(module) and not _of_all()


@torch.no_grad()
def state_of(model: nn.Module) -> tuple[Any, ...] | None:
    """All that the outcome of a trial may depend on; None where that cannot be told."""
    if _of_all():
        return None
    found: list[Any] = []
    tensors: list[Tensor] = []
    configurations: dict[int, Any] = {}
    for module in model.modules():
        kind, own, hooks = type(module), given_forward(module), _hooks(module)
        if not _is_trusted(kind) or (own is not None and not _is_trusted(own)) or not all(map(_is_trusted, hooks)):
            return None
        # By number, or what is remembered would keep the model alive.
        found += (id(module), kind, kind.forward, id(own), *(id(f) for f in hooks if _root(f) != _OURS))
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


def hooked_by_others(model: nn.Module) -> bool:
    """Whether hooks or forward functions of others act on the model: what they do may depend on anything."""

    def acts(what: Callable[..., Any] | None) -> bool:
        return what is not None and not _is_trusted(what)

    return _of_all() or any(acts(given_forward(x)) or any(map(acts, _hooks(x))) for x in model.modules())


def _of_all() -> bool:
    """Whether there are hooks of all modules of the process."""
    return bool(of_all_modules._global_forward_hooks or of_all_modules._global_forward_pre_hooks)


def _hooks(module: nn.Module) -> list[Callable[..., Any]]:
    # Copied at once: another thread may add or remove one meanwhile.
    return [*list(module._forward_pre_hooks.values()), *list(module._forward_hooks.values())]


def _is_trusted(what: Any) -> bool:
    return _root(what) in _TRUSTED


def _root(what: Any) -> str:
    while isinstance(what, partial):
        what = what.func
    return (getattr(what, "__module__", None) or "").partition(".")[0]


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
