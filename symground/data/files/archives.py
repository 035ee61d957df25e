"""Members of .zip and .tar.* archives. Damaged archives, and those that would exhaust the memory, are refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
#: Suffixes of archives that may contain such files but are not opened.
UNKNOWN = (".7z", ".rar", ".tar.zst", ".tzst", ".tar.z", ".taz", ".tar.lz", ".tar.lzma", ".tar.lz4")
#: Suffixes of single compressed files, which are not opened either.
PACKED = (".gz", ".bz2", ".xz", ".zst", ".z", ".lzma")
#: The errors of reading a damaged archive or a file that is not one. RuntimeError is raised for a zip file that needs a
#: password or has an unknown compression.
_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, struct.error, EOFError, OSError, RuntimeError,
    ValueError, IndexError, OverflowError,
)  # fmt: skip
_PACKED: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open),
)  # fmt: skip
#: Every archive may unpack to this many bytes.
_ALWAYS = 64 << 20
_CHUNK = 1 << 16
#: The records at the end of a .zip are within this many bytes of it: a comment, and the records before it.
_TAIL = (1 << 16) + 256

#: The name, the number of unpacked bytes, and a function that reads them.
Member = tuple[str, int, Callable[[], bytes]]


class Refused(ValueError):  # noqa: N818 - what becomes of the archive
    """A damaged or hostile archive; the message continues a sentence that begins with its name."""


def members(path: Path, max_ratio: int) -> Iterator[Member]:
    """The files of an archive: of a .zip in sorted order, of a .tar.* in its own. A member can be read only before the
    next one is requested.

    A .tar must end with its end mark, every header must match its checksum, and nothing may follow. A compressed .tar
    is read to its end, where its checksum is. A member of a .zip has a checksum, and must match the directory. Only the
    contents of an uncompressed .tar have no checksum.

    Raises:
        Refused: the archive is damaged, is no archive, has a link or a name that leads out of it, or unpacks to more
            than ``max_ratio`` times its size.
    """
    most = max(_ALWAYS, max_ratio * path.stat().st_size)
    limit = f"{max_ratio} times its size (--max-unpack-ratio)"
    with _damage():
        yield from (_zipped if path.name.lower().endswith(".zip") else _tarred)(path, most, limit)


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except Refused:
        raise
    except _DAMAGE as error:
        raise Refused(f"is damaged or not an archive ({error})") from error


def _zipped(path: Path, most: int, limit: str) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        listed = sorted(archive.infolist(), key=lambda member: member.filename)
        if sum(member.file_size for member in listed) > most:
            raise Refused(f"is refused: it unpacks to more than {limit}")
        if len(listed) != _entries(path):
            raise Refused(f"is damaged: its directory has {_entries(path):,} entries, but {len(listed):,} are found")
        for member in listed:
            _refuse_unsafe(member.filename, link=stat.S_ISLNK(member.external_attr >> 16))
            with archive.open(member) as file:  # compares the member's own header with the directory's
                if not member.is_dir():
                    yield member.filename, member.file_size, partial(_content, file)


def _entries(path: Path) -> int:
    """The number of entries in the record at the end of a .zip (4.3.16 and 4.3.14 of PKWARE's APPNOTE)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        tail = file.read()
    found: int = struct.unpack_from("<H", tail, tail.rindex(b"PK\x05\x06") + 10)[0]
    if found == 0xFFFF and b"PK\x06\x06" in tail:
        found = struct.unpack_from("<Q", tail, tail.rindex(b"PK\x06\x06") + 32)[0]
    return found


def _tarred(path: Path, most: int, limit: str) -> Iterator[Member]:
    with _Unpacked(path, most, limit) as file, tarfile.open(fileobj=file, mode="r|", tarinfo=_Header) as stream:
        for member in stream:
            _refuse_unsafe(member.name, link=member.issym() or member.islnk())
            if member.isreg():
                yield member.name, member.size, partial(_content, stream.extractfile(member))
        while rest := stream.fileobj.read(_CHUNK):
            if rest.strip(b"\0"):
                raise Refused("is damaged: its end mark is followed by other data")


def _content(file: IO[bytes] | None) -> bytes:
    with _damage():
        return file.read() if file else b""


class _Header(tarfile.TarInfo):
    """Makes damage an error: `tarfile` takes a damaged or missing header after the first for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"at byte {archive.offset:,}: {error or 'no header'}") from error


class _Unpacked:
    """The bytes of a .tar after decompression, up to the limit."""

    def __init__(self, path: Path, most: int, limit: str) -> None:
        with path.open("rb") as file:
            begins = file.read(8)
        unpack = next((unpack for magic, unpack in _PACKED if begins.startswith(magic)), None)
        self._file: IO[bytes] = unpack(path) if unpack else path.open("rb")
        self._left, self._limit = most if unpack else path.stat().st_size, limit

    def read(self, size: int) -> bytes:
        found = self._file.read(size)
        self._left -= len(found)
        if self._left < 0:
            raise Refused(f"is refused: it unpacks to more than {self._limit}")
        return found

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _refuse_unsafe(name: str, link: bool) -> None:
    """Nothing is ever unpacked, but an archive with such a member is not a corpus."""
    inside = PurePosixPath(name.replace("\\", "/"))
    if link or inside.is_absolute() or ".." in inside.parts:
        what = "is a link" if link else "leads out of the archive"
        raise Refused(f"is refused: its member {name!r} {what}")
