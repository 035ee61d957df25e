"""Panics of libraries that are written in Rust: their exception is no Exception, and ends who does not expect it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

#: What ends a program or a generator: no Exception either, and no panic.
ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)


def panics_named(what: str) -> AbstractContextManager[None]:
    """Within the block a panic becomes a ValueError that begins with ``what``: what was done, and to what."""
    return _named(what, (Exception, *ENDS))


def errors_named(what: str) -> AbstractContextManager[None]:
    """Within the block a panic, and all else that a library raises but an OSError, becomes such a ValueError."""
    return _named(what, (OSError, *ENDS))


@contextmanager
def _named(what: str, left: tuple[type[BaseException], ...]) -> Iterator[None]:
    try:
        yield
    except left:
        raise
    except BaseException as error:
        raise ValueError(f"{what} ({error})") from error
