"""Folders that are written whole: under another name, with checksums, synced to disk, and only then renamed.

Whatever stops a process between two writes, a folder of the final name holds all it should; what a disk does to it
later is found by its checksums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from symground.disk import OLD, make_folder, put_folder, remove, rename, share, write_json
from symground.folders import read_json

SUMS = "checksums.json"
_PARTIAL = "partial-"


@contextmanager
def sealed(folder: Path) -> Iterator[Path]:
    """A new folder to write files into; it becomes ``folder``, in the place of what is there, when the block ends well.

    Raises:
        OSError: the disk is full, or cannot be written; what was there stays.
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
    """Remove a sealed folder: whatever stops this, no half of it is left under its name."""
    gone = folder.with_name(_PARTIAL + folder.name)
    remove(gone)
    rename(folder, gone)
    remove(gone)


def settle(parent: Path) -> None:
    """Clear what processes that were killed left among the sealed folders of ``parent``. No other may write there now.

    A folder that was making room for a new one gets its name back; what was half written or half removed goes.
    """
    if not parent.is_dir():
        return
    for path in sorted(parent.glob(f"{_PARTIAL}*")):
        folder = path.with_name(path.name.removeprefix(_PARTIAL).removesuffix(OLD))
        if path.name.endswith(OLD) and not folder.exists():
            rename(path, folder)
        else:
            remove(path)


def damage(folder: Path, *, told: bool = False) -> str | None:
    """What is wrong with a sealed folder; None where nothing is.

    Args:
        folder: as :func:`sealed` made it, or one of somebody else.
        told: whether it must have checksums; otherwise nothing is known to be wrong with one that has none.
    """
    if not (folder / SUMS).is_file():
        return f"{SUMS} is missing" if told else None
    try:
        sums = read_json(folder / SUMS)
    except ValueError:
        sums = None
    if not isinstance(sums, dict):
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
