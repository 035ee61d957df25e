"""Panics of libraries that are written in Rust: their exception is no Exception, and ends who does not expect it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_named(what: str, others: bool = False) -> Iterator[None]:
    """Within the block a panic becomes a ValueError that begins with ``what``.

    Args:
        what: was done, and to what.
        others: so does whatever else the library raises but an OSError.

    Raises:
        ValueError: a library panicked.
    """
    try:
        yield
    except (OSError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not others:
            raise
        raise ValueError(f"{what} ({error})") from error
