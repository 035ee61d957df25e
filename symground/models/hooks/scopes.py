"""What ``with`` blocks ask of modules: by thread, in the order in which the blocks were entered.

A block has an entry of its own, which ends with it, whoever ends it and in whatever order. Passes of the thread that
entered the block see the entry; passes of other threads do not. Where a block is entered in an asyncio task, that task
sees the entry, and so do the tasks that it starts meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import nn

R = TypeVar("R")


class Entry(AbstractContextManager[None]):
    """A block's entry: what it asks of which modules. It is entered once."""

    def __init__(self, asks: Mapping[nn.Module, Any], hides: bool = False) -> None:
        self.asks: Mapping[nn.Module, Any] | None = asks
        """None when the block has ended."""
        self.hides = hides
        """Whether nothing that was asked before counts within the block."""
        self.in_task = False

    def __enter__(self) -> None:
        with _LOCK:
            here: _Entries | None = getattr(_HERE, "entries", None)
            if here is None:
                here = _HERE.entries = _Entries()
            self._owner = here
            _OPEN.add(self)
            self.in_task = _task() is not None
            if self.in_task:
                _INSIDE.set((*_INSIDE.get(), self))
            here.open = tuple(e for e in (*here.open, self) if e.asks is not None)

    def __exit__(self, *error: Any) -> None:
        # Re-entrant: a collector may end a generator's block while another one begins here.
        with _LOCK:
            self.asks = None
            _OPEN.discard(self)
            self._owner.open = tuple(e for e in self._owner.open if e.asks is not None)
            if not self._owner.open and getattr(_HERE, "entries", None) is self._owner:
                del _HERE.entries  # compiled graphs of a thread that asks nothing are all the same graph
            if self.in_task:
                _INSIDE.set(tuple(e for e in _INSIDE.get() if e.asks is not None))


class _Entries:
    """Of one thread."""

    def __init__(self, *entries: Entry) -> None:
        self.open: tuple[Entry, ...] = entries


# torch.compile guards what it reads of a threading.local, in the thread that calls; it cannot read a ContextVar.
_HERE = threading.local()
_INSIDE: ContextVar[tuple[Entry, ...]] = ContextVar("symground_inside", default=())
_LOCK = threading.RLock()
_OPEN: set[Entry] = set()
"""The blocks of all threads."""


def place() -> tuple[int, Any]:
    """The thread, and the asyncio task or None, for which a block that is entered now would hold."""
    return threading.get_ident(), _task()


def _task() -> Any:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


def asked_of(module: nn.Module) -> tuple[Any, ...]:
    """What the open blocks ask of a module, as this thread (and task) sees them, in the order of entry."""
    here: _Entries | None = getattr(_HERE, "entries", None)
    if here is None:
        if not torch.compiler.is_compiling():
            _check_known(module)
        return ()
    found: tuple[Any, ...] = ()
    for entry in here.open:
        asks = entry.asks
        if asks is None or (entry.in_task and not _inside(entry)):
            continue
        if entry.hides:
            found = ()
        if module in asks:
            found = (*found, asks[module])
    return found


def _check_known(module: nn.Module) -> None:
    """Refuse a pass on the way back, in a thread of autograd's, that may have been asked something on the way there.

    `remembering` tells it what; torch.utils.checkpoint by itself does not.
    """
    if not _OPEN or torch._C._current_graph_task_id() == -1:
        return
    foreign = isinstance(threading.current_thread(), threading._DummyThread)
    if foreign and any(module in (entry.asks or ()) for entry in tuple(_OPEN)):
        raise ValueError(
            "model: a layer runs again on the way back, in a thread of autograd's own, where it is not known what was "
            "asked of it; use model.gradient_checkpointing_enable() in place of torch.utils.checkpoint"
        )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _inside(entry: Entry) -> bool:
    return any(entry is one for one in _INSIDE.get())


def remembering(function: Callable[..., R]) -> Callable[..., R]:
    """``function`` as it is now: what is asked now is asked whenever it runs, in whatever thread, and nothing else.

    For what runs again on the way back: it must do what it did on the way there.
    """
    here: _Entries | None = getattr(_HERE, "entries", None)
    seen = () if here is None else here.open
    kept = tuple(Entry(e.asks, e.hides) for e in seen if e.asks is not None and not (e.in_task and not _inside(e)))

    def again(*args: Any, **kwargs: Any) -> R:
        with _as_entries(_Entries(*kept)):
            return function(*args, **kwargs)

    return again


class _Remembering:
    """A function that checkpoints, such that what it runs again is asked what it was asked the first time."""

    def __init__(self, checkpoint: Callable[..., Any]) -> None:
        self.checkpoint = checkpoint

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.checkpoint(remembering(function), *args, **kwargs)


def remember_when_checkpointing(model: nn.Module) -> None:
    """Have transformers' activation checkpointing of a model, where it is on, run layers again as they ran.

    On the way back they run in another thread (with a GPU), or when the blocks that asked something have ended.
    """
    if not model.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    for module in model.modules():
        function = vars(module).get("_gradient_checkpointing_func")
        if function is not None and not isinstance(function, _Remembering):
            object.__setattr__(module, "_gradient_checkpointing_func", _Remembering(function))


def forget_when_checkpointing(model: nn.Module) -> None:
    """Give a model its own checkpointing function back."""
    for module in model.modules():
        function = vars(module).get("_gradient_checkpointing_func")
        if isinstance(function, _Remembering):
            object.__setattr__(module, "_gradient_checkpointing_func", function.checkpoint)


@contextmanager
def _as_entries(entries: _Entries | None) -> Iterator[None]:
    before: _Entries | None = getattr(_HERE, "entries", None)
    _put(entries)
    try:
        yield
    finally:
        _put(before)


def _put(entries: _Entries | None) -> None:
    if entries is not None:
        _HERE.entries = entries
    elif hasattr(_HERE, "entries"):
        del _HERE.entries
