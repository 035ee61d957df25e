"""Temporary hooks and forward functions that act in one thread only, and tests for those of other code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules import module as of_all_modules

_HERE = threading.local()
"""``forwards``: module → the function that replaces its forward function in this thread."""
_LOCK = threading.RLock()
#: Packages whose code changes a module's output only together with something that ``state_of`` compares.
_TRUSTED = ("torch", "transformers", "accelerate", "symground")


class _StandIn:
    """Dispatches a module's forward function to the calling thread's replacement, else to the module's own."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.own, self.users = module, vars(module).get("forward"), 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forwards: Mapping[nn.Module, Callable[..., Any]] = getattr(_HERE, "forwards", {})
        return forwards.get(self.module, own_forward(self.module))(*args, **kwargs)


def given_forward(module: nn.Module) -> Callable[..., Any] | None:
    """The module's instance-level forward function, without our stand-in, or None."""
    own = vars(module).get("forward")
    return own.own if isinstance(own, _StandIn) else own


def own_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward function of a module, without our stand-in."""
    own = given_forward(module)
    return type(module).forward.__get__(module) if own is None else own


@contextmanager
def forward_as(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within the block, this thread's passes call these forward functions of the modules; no class is changed."""
    before: Mapping[nn.Module, Callable[..., Any]] = getattr(_HERE, "forwards", {})
    placed: list[_StandIn] = []
    try:
        for module in forwards:
            placed.append(_placed(module))  # noqa: PERF401 - stand-ins already placed are removed after an error
        _HERE.forwards = {**before, **forwards}
        yield
    finally:
        _HERE.forwards = before
        for stand_in in placed:
            _taken(stand_in)


def _placed(module: nn.Module) -> _StandIn:
    with _LOCK:
        own = vars(module).get("forward")
        stand_in = own if isinstance(own, _StandIn) else _StandIn(module)
        stand_in.users += 1
        object.__setattr__(module, "forward", stand_in)
        return stand_in


def _taken(stand_in: _StandIn) -> None:
    with _LOCK:
        stand_in.users -= 1
        module = stand_in.module
        if stand_in.users or vars(module).get("forward") is not stand_in:  # another function was set meanwhile
            return
        if stand_in.own is not None:
            object.__setattr__(module, "forward", stand_in.own)
        else:
            object.__delattr__(module, "forward")


@contextmanager
def hooked(
    *hooks: tuple[nn.Module, Callable[..., Any]], before: bool = False, with_kwargs: bool = False
) -> Iterator[None]:
    """Within the block, forward hooks of modules act on the passes of this thread only.

    Args:
        hooks: modules, each with a hook as ``register_forward_hook`` or ``register_forward_pre_hook`` expects it.
        before: whether the hooks run before the module.
        with_kwargs: whether the hooks receive the keyword arguments of the call.
    """
    here = threading.local()
    here.mine = True

    def only_here(hook: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: hook(*given) if getattr(here, "mine", False) else None

    handles = []
    try:
        for module, hook in hooks:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            handles.append(register(only_here(hook), with_kwargs=with_kwargs))
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is exactly of this class, and no hook or forward function changes its output."""
    own = given_forward(module)
    moved_only = own is None or _root(own) == "accelerate"
    return type(module) is kind and moved_only and not hooks_of(module) and not hooks_of_all()


def hooked_by_others(model: nn.Module) -> bool:
    """Whether hooks or forward functions of other code act on the model; they may depend on anything."""

    def acts(what: Callable[..., Any] | None) -> bool:
        return what is not None and not is_trusted(what)

    return hooks_of_all() or any(acts(given_forward(x)) or any(map(acts, hooks_of(x))) for x in model.modules())


def hooks_of_all() -> bool:
    """Whether there are global hooks, which act on every module of the process."""
    return bool(of_all_modules._global_forward_hooks or of_all_modules._global_forward_pre_hooks)


def hooks_of(module: nn.Module) -> list[Callable[..., Any]]:
    """All forward hooks of a module, including ours."""
    # The hooks are copied first, because another thread may add or remove one meanwhile.
    return [*list(module._forward_pre_hooks.values()), *list(module._forward_hooks.values())]


def is_trusted(what: Any) -> bool:
    """Whether a hook, a forward function or a class belongs to a package whose code we know."""
    return _root(what) in _TRUSTED


def is_ours(what: Any) -> bool:
    return _root(what) == "symground"


def _root(what: Any) -> str:
    while isinstance(what, partial):
        what = what.func
    return (getattr(what, "__module__", None) or "").partition(".")[0]
