"""Panics of libraries written in Rust: their exception is not a subclass of Exception, so callers do not catch it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

#: Exceptions that end a program or a generator. They are not subclasses of Exception either, but no panics.
ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)


def panics_named(what: str) -> AbstractContextManager[None]:
    """Within the block, a panic becomes a ValueError that begins with ``what``: the failed action and its object."""
    return _named(what, (Exception, *ENDS))


def errors_named(what: str) -> AbstractContextManager[None]:
    """Within the block, a panic or any other error of a library, except OSError, becomes such a ValueError."""
    return _named(what, (OSError, *ENDS))


@contextmanager
def _named(what: str, left: tuple[type[BaseException], ...]) -> Iterator[None]:
    try:
        yield
    except left:
        raise
    except BaseException as error:
        raise ValueError(f"{what} ({error})") from error
