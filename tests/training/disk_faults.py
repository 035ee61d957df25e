"""A disk that fails at a call, and all states that a kill or a power cut may leave.

The tests follow the calls of :mod:`symground.files.disk` to the operating system. They compute the worst that a power
cut may leave: a file has the content that was synced last, and a folder has the names that were synced last or its
present ones.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from symground.files import disk

CALLS = ("write", "fsync", "replace", "mkdir", "unlink", "rmdir", "chmod")
#: path → content; None for a folder
State = dict[str, bytes | None]


def state_of(root: Path) -> State:
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))
    }


def laid_out(state: State, root: Path) -> Path:
    root.mkdir(parents=True)
    for name, content in state.items():
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
    return root


class Watched:
    """``os`` for symground.files.disk: calls ``before(name, arguments)`` before each call that changes something."""

    def __init__(self, before: Callable[[str, tuple[Any, ...]], None]) -> None:
        self._before = before
        self.after: Callable[[str, tuple[Any, ...]], None] = lambda *_: None

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any) -> Any:
            self._before(name, arguments)
            done = real(*arguments)
            self.after(name, arguments)
            return done

        return call


@contextmanager
def watched(watch: Watched) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(disk, "os", watch)
        yield


class Cuts:
    """All states of a folder that a kill or a power cut may leave during an action in it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers: dict[int, int] = {}  # of the inodes that are there
        self._next = count()  # a number of its own: the disk gives a new file the inode of a folder that is gone
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._folders: set[int] = set()
        self._synced(root)
        self.found: dict[int, tuple[State, set[str]]] = {}
        self.promised: set[str] = set()

    def watch(self) -> Watched:
        watch = Watched(self._before)
        watch.after = self._after
        return watch

    def worst(self) -> State:
        """The state that a power cut would leave now: the names and contents that were synced last."""
        return dict(self._durable(self._number(self._root), ""))

    def _number(self, path: Path) -> int:
        inode = os.stat(path).st_ino
        if inode not in self._numbers:
            self._numbers[inode] = next(self._next)
        return self._numbers[inode]

    def _forget(self, path: Path) -> None:
        """Let the inode of ``path``, which is about to go, be another's."""
        if path.exists():
            self._numbers.pop(path.stat().st_ino, None)

    def _synced(self, path: Path) -> None:
        if path.is_dir():
            self._folders.add(self._number(path))
            self._names[self._number(path)] = {inside.name: self._number(inside) for inside in path.iterdir()}
            self._folders |= {self._number(inside) for inside in path.iterdir() if inside.is_dir()}
        else:
            self._content[self._number(path)] = path.read_bytes()

    def _before(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "fsync":
            path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))
            if self._root not in (path, *path.parents):
                return
            state = state_of(self._root)
            if path.is_file():  # half of it was written when the kill came
                key = str(path.relative_to(self._root))
                content = state[key] or b""
                self._keep({**state, key: content[: len(content) // 2]})
            self._keep(state)
        else:
            self._keep(state_of(self._root))
            if name in ("unlink", "rmdir", "replace"):
                self._forget(Path(arguments[-1]))

    def _after(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "fsync":
            path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))
            if self._root in (path, *path.parents):
                self._synced(path)
        self._keep(self.worst())
        now = state_of(self._root)
        self._keep({
            key: content if content is None else self._content.get(self._number(self._root / key), b"")
            for key, content in now.items()
        })  # fmt: skip

    def _durable(self, folder: int, above: str) -> Iterator[tuple[str, bytes | None]]:
        for name, number in self._names.get(folder, {}).items():
            if number in self._folders:
                yield above + name, None
                yield from self._durable(number, f"{above}{name}/")
            else:
                yield above + name, self._content.get(number, b"")

    def _keep(self, state: State) -> None:
        self.found.setdefault(hash(tuple(sorted(state.items(), key=lambda item: item[0]))), (state, set(self.promised)))


def failing_at(number: int) -> Watched:
    left = iter(range(number))

    def full(_: str, __: tuple[Any, ...]) -> None:
        if next(left, None) is None and not failed:
            failed.append(1)
            raise OSError(errno.ENOSPC, "No space left on device")

    failed: list[int] = []
    return Watched(full)


def is_full(what: Callable[[], object]) -> bool:
    """Whether the action raises the error of a full disk."""
    try:
        what()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return True
    return False


def calls_of(what: Callable[[], object]) -> int:
    counted: list[str] = []
    with watched(Watched(lambda name, _: counted.append(name))):
        what()
    return len(counted)
