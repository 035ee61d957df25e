"""Files of one kind in folders and archives: each is read once, without unpacking, and skipped ones are listed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from symground.data.files.archives import PACKED, UNKNOWN, Refused, members
from symground.data.files.archives import SUFFIXES as ARCHIVES
from symground.errors import check_types, integer

Suffix = str | tuple[str, ...]
#: (name, why it is not read)
LeftOut = list[tuple[str, str]]


@dataclass(frozen=True)
class Limits:
    """Limits on a file that is read."""

    max_file_mb: int = 1024
    """The largest file that is read, in MB, unpacked."""
    max_unpack_ratio: int = 100
    """An archive may unpack to this many times its size, or to 64 MB."""
    follow_links: bool = False
    """Follow links that lead out of a folder; otherwise they are refused."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("max_file_mb", "max_unpack_ratio"):
            integer(name, getattr(self, name), 1)


def file_names(
    paths: Iterable[str | Path], suffix: Suffix, limits: Limits | None = None, left_out: LeftOut | None = None
) -> list[str]:
    """The names that :func:`files_in` gives, in its order. Archives are read through once, so that damage is found
    before any work is done.

    Args:
        paths, suffix, limits, left_out: as in :func:`files_in`.

    Raises:
        The errors of :func:`files_in`.
    """
    return [name for name, _ in _Walk(suffix, None, limits, left_out).files(paths)]


def files_in(
    paths: Iterable[str | Path], suffix: Suffix, skip: int = 0, limits: Limits | None = None,
    left_out: LeftOut | None = None,
) -> Iterator[tuple[str, bytes]]:  # fmt: skip
    """(name, content) of every file with this ending; folders in sorted order, archives in their own.

    Archives in a folder are read too; their files are named as if they lay unpacked beside them. A file or folder that
    is reached twice (given twice, or through a link) counts once. Unprintable characters of a name are escaped, so
    every name is one line of UTF-8.

    Args:
        paths: files, folders, .zip and .tar.* archives.
        suffix: such as ".cha", or several; in lower case, but upper case is found too.
        skip: the number of files at the beginning that are not read.
        limits: how large files may be, and whether links are followed.
        left_out: files with this suffix that are not read, and unread files that may contain some, are appended to it
            with the reason.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a path is none of these; an archive is damaged, or has a member that is a link or whose name leads
            out of it (names the member); a link leads out of a folder, or a file is above a limit (names the option
            that raises it).
    """
    for number, (name, content) in enumerate(_Walk(suffix, skip, limits, left_out).files(paths)):
        if number >= skip:
            yield name, content


def printable(name: str) -> str:
    """The name as one line of UTF-8, with other bytes and unprintable characters escaped."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Walk:
    def __init__(self, suffix: Suffix, read_from: int | None, limits: Limits | None, left_out: LeftOut | None) -> None:
        """Contents of files before number ``read_from`` are not read; if it is None, none are."""
        self._suffix = (suffix,) if isinstance(suffix, str) else suffix
        self._read_from, self._number = read_from, -1
        self._limits = limits or Limits()
        self._left_out = [] if left_out is None else left_out
        self._seen: dict[tuple[int, int], str] = {}  # device and inode of files and folders → their first name

    def files(self, paths: Iterable[str | Path]) -> Iterator[tuple[str, bytes]]:
        for path in map(Path, _listed_paths(paths)):
            if not path.exists():
                raise FileNotFoundError(f"paths: {path} does not exist")
            if path.is_dir():
                if self._first(path, str(path), "folder"):
                    for file in self._listed(path):
                        yield from self._file(file, file.relative_to(path).as_posix())
            elif self._fits(path.name) or _is_archive(path.name):
                yield from self._file(path, path.name)
            else:
                kind = ", ".join(self._suffix)
                raise ValueError(
                    f"paths: expected a folder, a {kind} file, or an archive ({', '.join(ARCHIVES)}); got {path}"
                )

    def _fits(self, name: str) -> bool:
        return name.lower().endswith(self._suffix)

    def _is_packed_otherwise(self, name: str) -> bool:
        """Whether it may contain files of the requested kind in a format that is not read here."""
        packed = tuple(suffix + how for suffix in self._suffix for how in PACKED)
        return name.lower().endswith((*UNKNOWN, *packed))

    def _wanted(self) -> bool:
        self._number += 1
        return self._read_from is not None and self._number >= self._read_from

    def _leave_out(self, name: str, reason: str) -> None:
        self._left_out.append((printable(name), reason))

    def _first(self, path: Path, name: str, what: str) -> bool:
        """Whether it is reached for the first time; otherwise it is listed as not read."""
        found = path.stat()
        identity = (found.st_dev, found.st_ino)
        if identity in self._seen:
            self._leave_out(name, f"is the same {what} as {printable(self._seen[identity])}, which is read")
            return False
        self._seen[identity] = name
        return True

    def _listed(self, root: Path) -> list[Path]:
        """The files under a folder that may be read, sorted; folders reached through links come last."""
        inside, found = os.path.realpath(root), list[Path]()
        folders, links = [root], list[Path]()
        while folders or links:
            if not folders:
                link = links.pop()
                self._check_link(link, inside)
                if self._first(link, str(link), "folder"):
                    folders.append(link)
                continue
            for path in self._entries(folders.pop()):
                if path.is_dir():
                    if path.is_symlink():
                        links.append(path)
                    elif self._first(path, str(path), "folder"):
                        folders.append(path)
                elif self._fits(path.name) or _is_archive(path.name):
                    self._check_link(path, inside)
                    found.append(path)
                elif self._is_packed_otherwise(path.name):
                    self._leave_out(
                        path.relative_to(root).as_posix(),
                        f"is packed in an unsupported format (supported: {', '.join(ARCHIVES)})",
                    )
        return sorted(found)

    def _entries(self, folder: Path) -> list[Path]:
        try:
            return [folder / name for name in sorted(os.listdir(folder))]
        except OSError as error:
            self._leave_out(str(folder), f"cannot be read ({error.strerror})")
            return []

    def _check_link(self, path: Path, inside: str) -> None:
        if path.is_symlink() and not self._limits.follow_links:
            target = Path(os.path.realpath(path))
            if not target.is_relative_to(inside):
                raise ValueError(f"paths: {path} is a link that leads out of its folder, to {target} (--follow-links)")

    def _file(self, path: Path, name: str) -> Iterator[tuple[str, bytes]]:
        if not path.is_file():
            self._leave_out(name, "is not a file, or is a broken link")
        elif not os.access(path, os.R_OK):
            self._leave_out(name, "cannot be read (Permission denied)")
        elif self._first(path, name, "file"):
            if self._fits(path.name):
                self._check_size(name, path.stat().st_size)
                yield printable(name), path.read_bytes() if self._wanted() else b""
            else:
                yield from self._archive(path, name)

    def _archive(self, path: Path, name: str) -> Iterator[tuple[str, bytes]]:
        above = name[: len(name) - len(path.name)]
        try:
            for member, size, read in members(path, self._limits.max_unpack_ratio):
                if self._fits(member):
                    self._check_size(f"{path}: {member}", size)
                    yield printable(above + member), read() if self._wanted() else b""
                elif _is_archive(member) or self._is_packed_otherwise(member):
                    self._leave_out(f"{name}: {member}", "is an archive within an archive, which is not opened")
        except Refused as error:
            raise ValueError(f"paths: {path} {error}") from error.__cause__

    def _check_size(self, name: str, size: int) -> None:
        if size > self._limits.max_file_mb << 20:
            limit = f"the limit of {self._limits.max_file_mb:,} MB (--max-file-mb)"
            raise ValueError(f"paths: {name} has {size / 2**20:,.0f} MB, above {limit}")


def _listed_paths(paths: Iterable[str | Path]) -> list[str | Path]:
    listed: list[str | Path] = []
    for path in paths if isinstance(paths, Iterable) and not isinstance(paths, (str, Mapping)) else [None]:
        if not isinstance(path, (str, Path)):
            got = paths if path is None else path
            raise ValueError(f"paths: expected a list of paths, got {type(got).__name__} {str(got)[:60]!r}")
        listed.append(path)
    return listed


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES)
