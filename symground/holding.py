"""One process at a time in a folder: a lock that ends with its holder, and says who that is."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from symground.disk import make_folder

LOCK = "lock"


@contextmanager
def held(folder: Path, doing: str) -> Iterator[None]:
    """Hold ``folder`` for this process while the block runs. A process that dies, however it does, holds it no more.

    Where the file system has no locks, that is said, and nobody is refused.

    Args:
        folder: what is held; it is made where it is missing.
        doing: what this process does there, for who comes second: "trains".

    Raises:
        BlockingIOError: another process holds it (says which, since when, and what it does).
    """
    make_folder(folder)
    handle = _locked(folder, doing)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            os.unlink(folder / LOCK)
        os.close(handle)


def _locked(folder: Path, doing: str) -> int:
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = _holder(os.pread(handle, 4096, 0))
            os.close(handle)
            raise BlockingIOError(
                f"{folder} is held by {said}; start this again when that one has ended, or end it"
            ) from None
        except OSError as error:  # some file systems of clusters have no locks
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                os.close(handle)
                raise
            print(f"{folder}: this file system has no locks; no other process may be started there", file=sys.stderr)
        try:
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(handle)  # the holder before removed this file when it ended: the name is another file's now
    os.ftruncate(handle, 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    record = {"process": os.getpid(), "machine": socket.gethostname(), "since": since, "doing": doing}
    os.pwrite(handle, json.dumps(record).encode(), 0)
    return handle


def _holder(record: bytes) -> str:
    try:
        told = json.loads(record)
        return f"process {told['process']} on {told['machine']}, which {told['doing']} there since {told['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # which has not said yet who it is
