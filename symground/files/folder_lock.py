"""A lock on a folder for one process at a time. It ends with its holder, and names the holder."""

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

from symground.files.disk import make_folder

LOCK = "lock"


@contextmanager
def held(folder: Path, doing: str) -> Iterator[None]:
    """Hold a lock on ``folder`` while the block runs. If the process dies in any way, the lock is released.

    If the file system has no locks, this is printed, and no process is refused.

    Args:
        folder: is locked; it is made if missing.
        doing: what this process does there, for the message to a second process: "trains".

    Raises:
        BlockingIOError: another process holds the lock (says which, since when, and what it does).
    """
    make_folder(folder)
    handle = _locked(folder, doing)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may have been removed
            os.unlink(folder / LOCK)
        os.close(handle)


def _locked(folder: Path, doing: str) -> int:
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(os.pread(handle, 4096, 0))
            os.close(handle)
            raise BlockingIOError(f"{folder} is held by {holder}; wait until that process ends, or end it") from None
        except OSError as error:  # some clusters' file systems have no locks
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                os.close(handle)
                raise
            print(f"{folder}: this file system has no locks; do not start another process there", file=sys.stderr)
        try:
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(handle)  # the last holder removed this file: another has its name
    os.ftruncate(handle, 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    record = {"process": os.getpid(), "machine": socket.gethostname(), "since": since, "doing": doing}
    os.pwrite(handle, json.dumps(record).encode(), 0)
    return handle


def _holder(record: bytes) -> str:
    try:
        at = json.loads(record)
        return f"process {at['process']} on {at['machine']}, which {at['doing']} there since {at['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # the holder has not written its name yet
