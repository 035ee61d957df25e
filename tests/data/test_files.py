"""Files in folders and archives: the same content by every way, and archives that are damaged or hostile."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from symground.data.files import file_names, files_in

FILES = {"a/1.cha": b"one", "a/2.cha": b"two", "b.txt": b"no", "c/d/3.cha": b""}


def as_folder(path: Path) -> Path:
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def as_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in reversed(files.items()):
            archive.writestr(name, content)
    return path


def as_tar(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_every_way_gives_the_same(tmp_path: Path) -> None:
    wanted = [(name, content) for name, content in FILES.items() if name.endswith(".cha")]
    sources = [as_folder(tmp_path / "folder"), as_zip(tmp_path / "a.zip")]
    sources += [as_tar(tmp_path / f"a.tar{end}") for end in ("", ".gz", ".bz2", ".xz")]
    for source in sources:
        assert list(files_in([source], ".cha")) == wanted, source
        assert file_names([source], ".cha") == [name for name, _ in wanted]
    one = tmp_path / "folder" / "a" / "1.cha"
    assert list(files_in([one, one], ".cha")) == [("1.cha", b"one")] * 2


def test_what_is_not_there_or_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        file_names([tmp_path / "nowhere"], ".cha")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        ValueError, match=r"expected a folder, a \.cha file, a \.zip or a \.tar\.\* archive; got .*notes"
    ):
        file_names([tmp_path / "notes.txt"], ".cha")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.xz", "a.tar"])
@pytest.mark.parametrize("keep", [0, 40])
def test_a_damaged_archive_is_found_before_anything_is_read(tmp_path: Path, name: str, keep: int) -> None:
    whole = as_zip(tmp_path / name) if name.endswith(".zip") else as_tar(tmp_path / name)
    whole.write_bytes(whole.read_bytes()[:keep] + b"\x01")
    with pytest.raises(ValueError, match=f"{name} is damaged or not an archive"):
        file_names([whole], ".cha")


@pytest.mark.parametrize("name", ["../evil.cha", "/etc/evil.cha", "a/../../evil.cha", "..\\evil.cha", "../readme.txt"])
@pytest.mark.parametrize("make", [as_zip, as_tar])
def test_a_member_that_leads_out_is_refused(tmp_path: Path, name: str, make: object) -> None:
    path = tmp_path / ("a.zip" if make is as_zip else "a.tar.gz")
    make(path, {"good.cha": b"x", name: b"y"})  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"is refused, its member .* leads out of the archive"):
        list(files_in([path], ".cha"))


def test_a_link_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("link.cha")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("link.cha")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    for name in ("a.tar", "a.zip"):
        with pytest.raises(ValueError, match=r"its member 'link\.cha' is a link"):
            file_names([tmp_path / name], ".cha")
