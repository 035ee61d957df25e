"""Whether the process keeps freed memory on a CPU, or returns it to the system at once.

Does nothing if malloc is not glibc's.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
#: Bytes from which a tensor is large.
LARGE_TENSOR = 2**22
_RETURNED = {_TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: LARGE_TENSOR, _MMAP_MAX: 2**16}
_ALL_RETURNED = {_TRIM_THRESHOLD: 2**17, _MMAP_THRESHOLD: 2**17, _MMAP_MAX: 2**16}
_KEPT = {_TRIM_THRESHOLD: 2**30, _MMAP_THRESHOLD: 2**30}
#: The values that glibc's own thresholds reach in a process that frees large pieces.
_GROWN = {_TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: 2**25, _MMAP_MAX: 2**16}
_LOCK = threading.Lock()
#: The options of the active blocks, in order of their start; malloc has one setting for all threads.
_ASKED: list[Mapping[int, int]] = []


#: Layers × positions × width from which a pass (then about 200 MB) is large; smaller ones are faster if freed memory is
#: kept.
LARGE_PASS = 2**22


@contextmanager
def keep_freed_memory(on: bool = True) -> Iterator[None]:
    """Within the block, the process keeps freed memory; afterwards it returns it to the system.

    A step frees memory that the next one allocates again. Otherwise large pieces are returned each time, and their
    pages are zeroed again on allocation, which takes a third of the time of a small GPT-2's step.
    """
    with _asked(_KEPT, on):
        yield


@contextmanager
def return_freed_memory(on: bool = True, small: bool = False) -> Iterator[None]:
    """Within the block, tensors of 4 MiB and more are returned to the system as soon as they are freed.

    Otherwise pieces of up to 32 MiB come from one heap, which can shrink only from its end: a pass that uses at most
    0.3 GiB at once was seen to keep 1.4 GiB. The heap of smaller tensors, those of short texts, stays for the next
    pass. With ``small`` they are returned too, from 128 KiB on: SmolLM2-135M then needs 440 in place of 630 MiB for 512
    tokens, and a tenth more time, since their pages are zeroed again.
    """
    with _asked(_ALL_RETURNED if small else _RETURNED, on):
        yield


@contextmanager
def _asked(options: Mapping[int, int], on: bool) -> Iterator[None]:
    """If blocks overlap, in one thread or in several, the options of the last active one to start apply."""
    libc = _glibc() if on else None
    if libc is None:
        yield
        return
    with _LOCK:
        _ASKED.append(options)
        _set(libc)
    try:
        yield
    finally:
        with _LOCK:
            _ASKED.remove(options)
            _set(libc)
            if options is not _RETURNED and options not in _ASKED:
                libc.malloc_trim(0)


def _set(libc: Any) -> None:
    options = _ASKED[-1] if _ASKED else _GROWN
    taken = {option: libc.mallopt(option, value) for option, value in options.items()}
    if options is _KEPT and not taken[_MMAP_THRESHOLD]:  # an older glibc allows at most 32 MiB
        libc.mallopt(_MMAP_MAX, 0)


def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
