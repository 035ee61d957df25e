"""Trials: what is found out about a model by running it, and for how long that is believed.

An outcome holds while nothing that it may depend on has changed: which modules there are, of which classes, their
settings, hooks and forward functions, and each weight (which tensor it is, how often it was written to, and one of its
numbers, since a change through ``.data`` is not counted). Where something could change unseen (hooks, forward
functions or classes of others, which may hold a state of their own) nothing is believed, and every call tries again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from symground.models.override import given_forward

T = TypeVar("T")
_KNOWN: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, Any]]] = WeakKeyDictionary()
_OURS = "symground"
#: Their code changes what a module gives only together with something that is looked at.
_TRUSTED = ("torch", "transformers", "accelerate", _OURS)
_SETTINGS = (bool, int, float, str, type(None), torch.dtype, torch.device)


def tried(model: nn.Module, name: str, trial: Callable[[], T]) -> T:
    """What the trial of that name gives for the model as it is now."""
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
        kind, own = type(module), given_forward(module)
        changes = [f for f in _hooks(module) if _root(f) != _OURS]
        if not _is_trusted(kind) or not all(map(_is_trusted, changes)) or not (own is None or _is_trusted(own)):
            return None
        # By number, or what is remembered would keep the model alive.
        found.append((id(module), kind, kind.forward, id(own), *map(id, changes), *_settings(dict(vars(module)))))
        tensors += [x for x in (*module._parameters.values(), *module._buffers.values()) if x is not None]
        config = vars(module).get("config")
        if config is not None:
            configurations[id(config)] = config
    found += [tuple(_settings(dict(vars(config)))) for config in configurations.values()]
    found += [(id(x), x.data_ptr() if _is_there(x) else 0, _version(x), x.dtype, x.shape) for x in tensors]
    return (*found, *_numbers(tensors))


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
    return str(getattr(what, "__module__", None) or "").partition(".")[0]


def _settings(values: dict[str, Any]) -> Iterator[Any]:
    """Names and values of plain settings, those within lists and dictionaries too."""
    for name, value in values.items():
        if isinstance(value, _SETTINGS):
            yield name, value
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield name, *_settings(dict(enumerate(value)))  # type: ignore[arg-type]
        elif type(value) is dict and name not in ("_parameters", "_buffers", "_modules"):
            yield name, *_settings(value)


def _is_there(x: Tensor) -> bool:
    return not x.is_meta and x.layout == torch.strided


def _version(x: Tensor) -> int:
    return -1 if x.is_inference() else x._version


def _numbers(tensors: Iterable[Tensor]) -> Iterator[float]:
    """One of each tensor."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for x in tensors:
        if _is_there(x) and x.numel():
            by_device.setdefault(x.device, []).append(x[(0,) * x.ndim].to(torch.float64))
    for numbers in by_device.values():  # all of a device at once: a GPU is waited for once
        yield from torch.stack(numbers).nan_to_num(0.0).tolist()
