"""What the package changes on a disk: files and folders that a crash of the process or of the machine leaves whole.

A name that is not synced may be lost in a power cut, and a file that is renamed before its content is synced may come
back empty. So every function here syncs what it has changed, content before name, before it returns. All of it goes
through ``os``, where the tests let each call in turn fail.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

OLD = ".old"


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on the disk.

    A folder that may not be opened, or whose file system syncs no folders, is left to the system.

    Raises:
        OSError: the disk is full, or does not write.
    """
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if folder:
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Have everything in a folder on the disk; what is removed meanwhile needs not be."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            sync(path)
    sync(folder)


def put_folder(partial: Path, to: Path) -> None:
    """Give a folder that was filled under another name its own, once all of it is on the disk.

    What has the name makes room first, comes back when that fails, and goes when it is done.
    """
    sync_all(partial)
    old = partial.with_name(partial.name + OLD)
    remove(old)
    try:
        if to.exists():
            rename(to, old)
        rename(partial, to)
    except BaseException:
        if old.exists() and not to.exists():
            with suppress(OSError):
                rename(old, to)
        raise
    remove(old)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with suppress(FileExistsError):  # which another process has made since
        os.mkdir(path)
    sync(path.parent)


def rename(path: Path, to: Path) -> None:
    """Give a file or a folder another name in its folder; a file that has it already is replaced."""
    os.replace(path, to)
    sync(to.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing where there is neither."""
    try:
        if path.is_dir() and not path.is_symlink():
            for inside in sorted(path.iterdir()):
                remove(inside)
            os.rmdir(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        return


def append(path: Path, text: str) -> None:
    """Put text at the end of a file. It is not synced: :func:`sync` does that when it must not be lost."""
    _write(path, os.O_APPEND, text.encode())


def write_text(path: Path, text: str) -> None:
    """Write a file whole: a reader never sees half of it, whatever stops this."""
    with replacing(path) as partial:
        _write(partial, os.O_TRUNC, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole."""
    write_text(path, json.dumps(content, indent=1) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; it takes that place when the block ends without an error.

    Folders above it are made. A reader never sees half a file, and one that reads a folder of tables passes over a name
    that begins so. What was there stays until the new file is on the disk.
    """
    make_folder(path.parent)
    partial = path.with_name(f"_{path.name}.partial")
    try:
        _write(partial, os.O_TRUNC, b"")
        mode = partial.stat().st_mode
        yield partial
        share(partial, mode)
        sync(partial)
        rename(partial, path)
    except BaseException:
        with suppress(OSError):
            remove(partial)
        raise


def share(path: Path, mode: int) -> None:
    """Let those read a file that something else has written who may read a new file of ours.

    safetensors writes files that nobody but their owner may read, whatever the umask.

    Args:
        path: the file.
        mode: of a file that was made here, as ``st_mode`` has it.
    """
    if path.stat().st_mode != mode:
        os.chmod(path, stat.S_IMODE(mode))


def _write(path: Path, how: int, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o666)
    try:
        while content:
            content = content[os.write(handle, content) :]
    finally:
        os.close(handle)
