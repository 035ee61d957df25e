"""The requests of ``with`` blocks to modules, for each thread, in the order in which the blocks were entered.

Each block has an `Entry`. It ends with the block, whichever thread ends it and in whatever order. Passes of the thread
that entered the block see the entry; passes of other threads do not. If a block is entered in an asyncio task, that
task sees the entry, and so do the tasks that it starts meanwhile.
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

from symground.ops.common.compiled import opaque

R = TypeVar("R")


class Entry(AbstractContextManager[None]):
    """A block's requests to modules. An entry is entered once."""

    def __init__(self, asks: Mapping[nn.Module, Any], hides: bool = False) -> None:
        self.asks: Mapping[int, Any] | None = {}
        """By the modules' ids, since torch.compile guards these; None when the block has ended."""
        self.ask(asks)
        self.hides = hides
        """Whether the block hides the requests of the blocks around it."""
        self.in_task = False

    def ask(self, asks: Mapping[nn.Module, Any]) -> None:
        """Request this from now on, while the block is open; a recompute sees what its forward pass saw."""
        with _LOCK:
            if self.asks is not None:
                self.of, self.asks = asks, {id(module): asked for module, asked in asks.items()}

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
        # The lock is re-entrant: the garbage collector may end a generator's block while another block begins here.
        with _LOCK:
            self.asks = None
            _OPEN.discard(self)
            self._owner.open = tuple(e for e in self._owner.open if e.asks is not None)
            if not self._owner.open and getattr(_HERE, "entries", None) is self._owner:
                del _HERE.entries  # threads without open blocks then share one compiled graph
            if self.in_task:
                _INSIDE.set(tuple(e for e in _INSIDE.get() if e.asks is not None))


class _Entries:
    """The open entries of one thread."""

    def __init__(self, *entries: Entry) -> None:
        self.open: tuple[Entry, ...] = entries


# torch.compile guards the attributes of a threading.local that it reads, in the calling thread. It cannot read a
# ContextVar.
_HERE = threading.local()
_INSIDE: ContextVar[tuple[Entry, ...]] = ContextVar("symground_inside", default=())
_LOCK = threading.RLock()
_OPEN: set[Entry] = set()
"""The blocks of all threads."""


def place() -> tuple[int, Any]:
    """The thread, and the asyncio task or None, to which a block entered now would apply."""
    return threading.get_ident(), _task()


def _task() -> Any:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


def asked_of(module: nn.Module) -> tuple[Any, ...]:
    """The requests to a module of the open blocks that this thread (and task) sees, in the order of entry."""
    here: _Entries | None = getattr(_HERE, "entries", None)
    if here is None:
        if not torch.compiler.is_compiling():
            _check_known(module)
        return ()
    found: tuple[Any, ...] = ()
    key = id(module)
    for entry in here.open:
        asks = entry.asks
        if asks is None or (entry.in_task and not _inside(entry)):
            continue
        if entry.hides:
            found = ()
        if key in asks:
            found = (*found, asks[key])
    return found


def _check_known(module: nn.Module) -> None:
    """Refuse a recompute in one of autograd's threads if the module may have had requests in the forward pass.

    `remembering` binds a recompute to those requests; torch.utils.checkpoint alone does not.
    """
    if not _OPEN or not in_backward():
        return
    foreign = isinstance(threading.current_thread(), threading._DummyThread)
    if foreign and any(id(module) in (entry.asks or ()) for entry in tuple(_OPEN)):
        raise ValueError(
            "model: a layer is recomputed in the backward pass, in one of autograd's threads, which does not see the "
            "open blocks; use model.gradient_checkpointing_enable() in place of torch.utils.checkpoint"
        )


def in_backward() -> bool:
    """Whether autograd calls this code, as it does in a recompute of activation checkpointing."""
    return torch._C._current_graph_task_id() != -1


@opaque
def _inside(entry: Entry) -> bool:
    return any(entry is one for one in _INSIDE.get())


def remembering(function: Callable[..., R]) -> Callable[..., R]:
    """``function``, bound to the blocks that are open now, in whatever thread it later runs.

    Activation checkpointing needs this: the recompute of a layer must equal its forward pass.
    """
    here: _Entries | None = getattr(_HERE, "entries", None)
    seen = () if here is None else here.open
    kept = tuple(Entry(e.of, e.hides) for e in seen if e.asks is not None and not (e.in_task and not _inside(e)))

    def again(*args: Any, **kwargs: Any) -> R:
        with _as_entries(_Entries(*kept)):
            return function(*args, **kwargs)

    return again


class _Remembering:
    """A checkpointing function whose recompute sees the same blocks as the forward pass."""

    def __init__(self, checkpoint: Callable[..., Any]) -> None:
        self.checkpoint = checkpoint

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.checkpoint(remembering(function), *args, **kwargs)


def remember_when_checkpointing(model: nn.Module) -> None:
    """If transformers' activation checkpointing is on, make it recompute layers under the blocks of the forward pass.

    Without this, the recompute may see other blocks: on a GPU it runs in another thread, and the blocks may have ended.
    """
    if not model.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    for module in model.modules():
        function = vars(module).get("_gradient_checkpointing_func")
        if function is not None and not isinstance(function, _Remembering):
            object.__setattr__(module, "_gradient_checkpointing_func", _Remembering(function))


def forget_when_checkpointing(model: nn.Module) -> None:
    """Restore a model's own checkpointing function."""
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
