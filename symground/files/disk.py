"""Changes of files and folders on disk, which a crash of the process or of the machine leaves either old or new.

A name that is not synced may be lost in a power cut, and a file that is renamed before its content is synced may be
empty afterwards. So every function here syncs its changes, content before name, before it returns. All changes go
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
    """Sync the content of a file, or the names in a folder, to disk.

    A folder that must not be opened, or whose file system cannot sync folders, is left to the system.

    Raises:
        OSError: the disk is full or cannot be written.
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
    """Sync everything in a folder to disk, except what is removed meanwhile."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            sync(path)
    sync(folder)


def put_folder(partial: Path, to: Path) -> None:
    """Rename a folder that was filled under another name, once its contents are on disk.

    A folder that has the name already is moved aside first. It is moved back if this fails, and removed if not.
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
    """Make a folder and its missing parents."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with suppress(FileExistsError):  # another process may have made it since
        os.mkdir(path)
    sync(path.parent)


def rename(path: Path, to: Path) -> None:
    """Rename a file or a folder within its folder; a file that has the name already is replaced."""
    os.replace(path, to)
    sync(to.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents; nothing if it does not exist."""
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
    """Append text to a file. It is not synced; :func:`sync` does that where it must not be lost."""
    _write(path, os.O_APPEND, text.encode())


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a reader never sees half of it, wherever this stops."""
    with replacing(path) as partial:
        _write(partial, os.O_TRUNC, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested too deeply
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it replaces ``path`` when the block ends without an error.

    Missing parents are made. A reader never sees half a file, and readers of a folder of tables skip such temporary
    names. The old file stays until the new one is on disk.
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
    """Give a file written by another library the permissions of our own new files.

    safetensors writes files that only their owner may read, whatever the umask.

    Args:
        path: the file.
        mode: ``st_mode`` of a file that was made here.
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
