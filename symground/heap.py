"""What becomes of memory that is freed, on a CPU: it stays with the process, or goes back at once."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
_LARGE = 2**30
#: Where glibc's own thresholds end up in a process that frees large pieces.
_GROWN = {_TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: 2**25}


@contextmanager
def kept(on: bool = True) -> Iterator[None]:
    """Within the block, memory that is freed stays with the process; afterwards it goes back to the system.

    A step frees what the next one takes again. Large pieces are otherwise given back each time, and their pages come
    anew, zeroed: a third of the time of a small GPT-2's step. Does nothing where malloc is not glibc's.
    """
    libc = _glibc() if on else None
    if libc is None:
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, _LARGE)
    if not libc.mallopt(_MMAP_THRESHOLD, _LARGE):  # an older glibc takes 32 MiB at most
        libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        for option, value in _USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


@contextmanager
def returned(on: bool = True) -> Iterator[None]:
    """Within the block, large pieces go back to the system as soon as they are freed.

    Otherwise pieces of up to 32 MiB come from one heap, which can only shrink from its end: a pass that holds 0.3 GiB
    at once was seen to keep 1.4. Does nothing where malloc is not glibc's.
    """
    libc = _glibc() if on else None
    if libc is None:
        yield
        return
    for option, value in _USUAL.items():
        libc.mallopt(option, value)
    libc.malloc_trim(0)
    try:
        yield
    finally:
        for option, value in _GROWN.items():
            libc.mallopt(option, value)


def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
