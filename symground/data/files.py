"""Files of one kind in folders and archives, one at a time, nothing unpacked."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: What reading a damaged archive, or one that is none, raises; RuntimeError: a zip file that wants a password.
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, RuntimeError)


Suffix = str | tuple[str, ...]


def file_names(paths: Iterable[str | Path], suffix: Suffix) -> list[str]:
    """The names that :func:`files_in` gives, in its order; an archive is read through once, so that a damaged one is
    found before anything is done.

    Raises:
        As :func:`files_in`.
    """
    return [name for name, _ in _walk(paths, suffix, None)]


def files_in(paths: Iterable[str | Path], suffix: Suffix, skip: int = 0) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file with this ending; folders in sorted order, archives in their own.

    Args:
        paths: files, folders, .zip and .tar.* archives.
        suffix: ".cha", say, or several.
        skip: so many at the beginning are left out, and not read.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a path that is none of these, a damaged archive, or one with a member that is a link or whose name
            leads out of it (names the member).
    """
    for number, (name, read) in enumerate(_walk(paths, suffix, skip)):
        if number >= skip:
            yield name, read


def _walk(paths: Iterable[str | Path], suffix: Suffix, read_from: int | None) -> Iterator[tuple[str, bytes]]:
    """(name, content), the content empty before the file of the number ``read_from``, or of all."""
    number = -1

    def wanted() -> bool:
        nonlocal number
        number += 1
        return read_from is not None and number >= read_from

    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"paths: {path} does not exist")
        if path.is_dir():
            for file in sorted(file for file in path.rglob("*") if file.name.endswith(suffix) and file.is_file()):
                yield file.relative_to(path).as_posix(), file.read_bytes() if wanted() else b""
        elif path.name.endswith(suffix):
            yield path.name, path.read_bytes() if wanted() else b""
        elif path.name.endswith((".zip", *_TAR)):
            try:
                yield from (_zipped if path.name.endswith(".zip") else _tarred)(path, suffix, wanted)
            except _DAMAGE as error:
                raise ValueError(f"paths: {path} is damaged or not an archive ({error})") from error
        else:
            kind = suffix if isinstance(suffix, str) else ", ".join(suffix)
            raise ValueError(f"paths: expected a folder, a {kind} file, a .zip or a .tar.* archive; got {path}")


def _zipped(path: Path, suffix: Suffix, wanted: Callable[[], bool]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.infolist(), key=lambda m: m.filename):
            _refuse_unsafe(path, member.filename, link=stat.S_ISLNK(member.external_attr >> 16))
            if member.filename.endswith(suffix):
                yield member.filename, archive.read(member) if wanted() else b""


def _tarred(path: Path, suffix: Suffix, wanted: Callable[[], bool]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r|*") as stream:
        for member in stream:
            _refuse_unsafe(path, member.name, link=member.issym() or member.islnk())
            if member.isreg() and member.name.endswith(suffix):
                file = stream.extractfile(member) if wanted() else None
                yield member.name, file.read() if file else b""


def _refuse_unsafe(path: Path, name: str, link: bool) -> None:
    """Nothing is ever unpacked, but an archive that tries is no corpus."""
    inside = PurePosixPath(name.replace("\\", "/"))
    if link or inside.is_absolute() or ".." in inside.parts:
        what = "is a link" if link else "leads out of the archive"
        raise ValueError(f"paths: {path} is refused, its member {name!r} {what}")
