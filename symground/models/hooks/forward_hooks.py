"""Hooks and forward functions of modules: ours for a while, for the passes of one thread; and whether others' act."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules import module as of_all_modules

_HERE = threading.local()
"""``forwards``: of this thread, module → what stands in for its forward function."""
_LOCK = threading.RLock()
#: Their code changes what a module gives only together with something that is looked at.
_TRUSTED = ("torch", "transformers", "accelerate", "symground")


class _StandIn:
    """A module's forward function while any thread has another one: each thread calls its own."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.own, self.users = module, vars(module).get("forward"), 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forwards: Mapping[nn.Module, Callable[..., Any]] = getattr(_HERE, "forwards", {})
        return forwards.get(self.module, own_forward(self.module))(*args, **kwargs)


def given_forward(module: nn.Module) -> Callable[..., Any] | None:
    """The forward function that a module has beside its class's, without what stands in for it; None: it has none."""
    own = vars(module).get("forward")
    return own.own if isinstance(own, _StandIn) else own


def own_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward function of a module without what stands in for it."""
    own = given_forward(module)
    return type(module).forward.__get__(module) if own is None else own


@contextmanager
def forward_as(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Other forward functions of these very modules in this thread's passes within the block; no class is touched."""
    before: Mapping[nn.Module, Callable[..., Any]] = getattr(_HERE, "forwards", {})
    placed: list[_StandIn] = []
    try:
        for module in forwards:
            placed.append(_placed(module))  # noqa: PERF401 - those that are placed are taken back whatever happens
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
        if stand_in.users or vars(module).get("forward") is not stand_in:  # it has been given another one meanwhile
            return
        if stand_in.own is not None:
            object.__setattr__(module, "forward", stand_in.own)
        else:
            object.__delattr__(module, "forward")


@contextmanager
def hooked(
    *hooks: tuple[nn.Module, Callable[..., Any]], before: bool = False, with_kwargs: bool = False
) -> Iterator[None]:
    """Forward hooks of modules within the block, for the passes of this thread alone.

    Args:
        hooks: modules, and what is called as ``register_forward_hook`` calls it, or ``register_forward_pre_hook``.
        before: whether they are called before the module runs.
        with_kwargs: whether they are given the keyword arguments of the call.
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
    """Whether a module is of this very class, and nothing changes what its forward function gives."""
    own = given_forward(module)
    moved_only = own is None or _root(own) == "accelerate"
    return type(module) is kind and moved_only and not hooks_of(module) and not hooks_of_all()


def hooked_by_others(model: nn.Module) -> bool:
    """Whether hooks or forward functions of others act on the model: what they do may depend on anything."""

    def acts(what: Callable[..., Any] | None) -> bool:
        return what is not None and not is_trusted(what)

    return hooks_of_all() or any(acts(given_forward(x)) or any(map(acts, hooks_of(x))) for x in model.modules())


def hooks_of_all() -> bool:
    """Whether there are hooks of all modules of the process."""
    return bool(of_all_modules._global_forward_hooks or of_all_modules._global_forward_pre_hooks)


def hooks_of(module: nn.Module) -> list[Callable[..., Any]]:
    """All forward hooks of a module, ours among them."""
    # Copied at once: another thread may add or remove one meanwhile.
    return [*list(module._forward_pre_hooks.values()), *list(module._forward_hooks.values())]


def is_trusted(what: Any) -> bool:
    """Whether a hook, a forward function or a class is of a package whose code we know."""
    return _root(what) in _TRUSTED


def is_ours(what: Any) -> bool:
    return _root(what) == "symground"


def _root(what: Any) -> str:
    while isinstance(what, partial):
        what = what.func
    return (getattr(what, "__module__", None) or "").partition(".")[0]
