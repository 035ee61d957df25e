"""Folders that are written whole: under another name, with checksums, synced to disk, and only then renamed.

Whatever stops a process between two writes, a folder of the final name holds all it should; what a disk does to it
later is found by its checksums.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from symground.folders import read_json, write_json

SUMS = "checksums.json"
_PARTIAL = "partial-"


@contextmanager
def sealed(folder: Path) -> Iterator[Path]:
    """A new folder to write files into; it becomes ``folder``, in the place of what is there, when the block ends well.

    Raises:
        OSError: the disk is full, or cannot be written; what was there stays.
    """
    partial = folder.with_name(_PARTIAL + folder.name)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        write_json(partial / SUMS, {file.name: digest(file) for file in sorted(partial.iterdir())})
        for path in (*partial.iterdir(), partial):
            sync(path)
        if folder.exists():
            discard(folder)
        partial.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def discard(folder: Path) -> None:
    """Remove a sealed folder: whatever stops this, no half of it is left under its name."""
    gone = folder.with_name(f"{_PARTIAL}{folder.name}.old")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder; None where nothing is, or where it has no checksums to tell."""
    if not (folder / SUMS).is_file():
        return None
    try:
        sums = read_json(folder / SUMS)
        if not isinstance(sums, dict):
            return f"{SUMS} is none"
    except ValueError:
        return f"{SUMS} is none"
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


def sync(path: Path) -> None:
    """Have what was written to a file, or into a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
