"""Folders that are written atomically: under a temporary name, with checksums, synced to disk, and then renamed.

Wherever a process stops between two writes, a folder with its final name is complete. Later damage on the disk is
detected by the checksums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from symground.files.disk import OLD, make_folder, put_folder, read_json, remove, rename, share, write_json

SUMS = "checksums.json"
_PARTIAL = "partial-"


@contextmanager
def sealed(folder: Path) -> Iterator[Path]:
    """A new folder to write files into; it replaces ``folder`` when the block ends without an error.

    Raises:
        OSError: the disk is full or cannot be written; the old folder stays.
    """
    partial = folder.with_name(_PARTIAL + folder.name)
    remove(partial)
    make_folder(partial)
    try:
        yield partial
        files = sorted(partial.iterdir())
        write_json(partial / SUMS, {file.name: digest(file) for file in files})
        for file in files:
            share(file, (partial / SUMS).stat().st_mode)
        put_folder(partial, folder)
    except BaseException:
        with suppress(OSError):
            remove(partial)
        raise


def discard(folder: Path) -> None:
    """Remove a sealed folder; wherever this stops, no half of it remains under its name."""
    gone = folder.with_name(_PARTIAL + folder.name)
    remove(gone)
    rename(folder, gone)
    remove(gone)


def settle(parent: Path) -> None:
    """Clean up after killed processes among the sealed folders of ``parent``, while no other process writes there.

    A folder that was moved aside for a new one gets its name back; half-written and half-removed folders are removed.
    """
    if not parent.is_dir():
        return
    for path in sorted(parent.glob(f"{_PARTIAL}*")):
        folder = path.with_name(path.name.removeprefix(_PARTIAL).removesuffix(OLD))
        if path.name.endswith(OLD) and not folder.exists():
            rename(path, folder)
        else:
            remove(path)


def damage(folder: Path, *, required: bool = False) -> str | None:
    """What is wrong with a sealed folder; None if nothing is.

    Args:
        folder: made by :func:`sealed`, or by another program.
        required: whether it must have checksums; otherwise a folder without them counts as undamaged.
    """
    if not (folder / SUMS).is_file():
        return f"{SUMS} is missing" if required else None
    try:
        sums = read_json(folder / SUMS)
    except ValueError:
        return f"{SUMS} has no checksums"
    for name, wanted in sums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if digest(folder / name) != wanted:
            return f"{name} has another checksum than when it was written"
    return None


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
