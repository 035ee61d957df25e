"""Files in folders and archives: the same content from each, and archives that are damaged or hostile."""

from __future__ import annotations

import io
import os
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from symground.data.files import Limits, archives, file_names, files_in

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


def test_folders_and_archives_give_the_same_files(tmp_path: Path) -> None:
    wanted = [(name, content) for name, content in FILES.items() if name.endswith(".cha")]
    sources = [as_folder(tmp_path / "folder"), as_zip(tmp_path / "a.zip")]
    sources += [as_tar(tmp_path / f"a.tar{end}") for end in ("", ".gz", ".bz2", ".xz")]
    for source in sources:
        assert list(files_in([source], ".cha")) == wanted, source
        assert file_names([source], ".cha") == [name for name, _ in wanted]
    one = tmp_path / "folder" / "a" / "1.cha"
    assert list(files_in([one], ".cha")) == [("1.cha", b"one")]


def test_missing_paths_and_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        file_names([tmp_path / "nowhere"], ".cha")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        ValueError, match=r"expected a folder, a \.cha file, or an archive \(\.zip, \.tar.*\); got .*notes"
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
def test_a_member_that_leads_out_of_the_archive_is_refused(tmp_path: Path, name: str, make: object) -> None:
    path = tmp_path / ("a.zip" if make is as_zip else "a.tar.gz")
    make(path, {"good.cha": b"x", name: b"y"})  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"is refused: its member .* leads out of the archive"):
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


# Damage: after a flipped bit or a truncation, an archive is refused, or all its members are unchanged.

LARGE = {f"{'ab'[i % 2]}/{i}.cha": (f"{i} ka lo\n" * (i * 7)).encode() for i in range(1, 6)} | {
    "readme.txt": b"mi" * 40
}
KINDS = {".zip": as_zip, ".tar": as_tar, ".tar.gz": as_tar, ".tar.xz": as_tar, ".tar.bz2": as_tar}


def whole(folder: Path, end: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The bytes of an archive, and what is in it."""
    path = KINDS[end](folder / f"whole{end}", LARGE)  # type: ignore[operator]
    return path.read_bytes(), sorted((name, text) for name, text in LARGE.items() if name.endswith(".cha"))


def read_or_refused(path: Path, content: bytes, wanted: list[tuple[str, bytes]]) -> str:
    """ "same" or "refused"; fails if members are lost or changed without an error."""
    path.write_bytes(content)
    try:
        found = sorted(files_in([path], ".cha"))
    except ValueError as error:
        found = str(error)
    assert found == wanted or str(path) in found
    return "same" if found == wanted else "refused"


def contents_of(tar: bytes) -> set[int]:
    """The positions of a tar that no checksum covers: the contents of its files."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {i for m in archive for i in range(m.offset_data, m.offset_data + m.size)}


@pytest.mark.parametrize("end", KINDS)
def test_a_flipped_bit_is_found(tmp_path: Path, end: str) -> None:
    content, wanted = whole(tmp_path, end)
    free = contents_of(content) if end == ".tar" else set()
    rng = random.Random(end)
    places = [i for i in range(len(content)) if i not in free]
    ends = {
        read_or_refused(tmp_path / f"a{end}", content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :], wanted)
        for i, bit in ((rng.choice(places), rng.randrange(8)) for _ in range(400))
    }
    assert "refused" in ends


@pytest.mark.parametrize("end", KINDS)
def test_a_truncation_is_found(tmp_path: Path, end: str) -> None:
    content, wanted = whole(tmp_path, end)
    rng = random.Random(end)
    cuts = {0, 1, len(content) - 1, *range(0, len(content), 512), *(rng.randrange(len(content)) for _ in range(150))}
    ends = {cut: read_or_refused(tmp_path / f"a{end}", content[:cut], wanted) for cut in sorted(cuts)}
    assert ends[0] == ends[1] == ends[len(content) // 512 // 2 * 512] == "refused"


def test_data_after_the_end_of_a_tar_is_refused(tmp_path: Path) -> None:
    path = as_tar(tmp_path / "a.tar")
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ValueError, match=r"a\.tar is damaged: its end mark is followed by other data"):
        file_names([path], ".cha")


# Limits: an option raises each.


@pytest.mark.parametrize("end", [".zip", ".tar.gz", ".tar.xz"])
def test_an_archive_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"bomb{end}"
    names = {f"{i}.cha": bytes(1 << 20) for i in range(5)}
    assert archives._ALWAYS == 64 << 20
    monkeypatch.setattr(archives, "_ALWAYS", 4 << 20)
    if end == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in names.items():
                archive.writestr(name, content)
    else:
        as_tar(path, names)
    for way in (file_names, lambda *args: list(files_in(*args))):
        with pytest.raises(
            ValueError, match=rf"bomb{end} is refused: it unpacks to more than 100 times its size \(--max-"
        ):
            way([path], ".cha")
    assert len(file_names([path], ".cha", Limits(max_unpack_ratio=20_000))) == 5


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.cha").open("wb") as file:
        file.truncate(3 << 20)
    as_zip(tmp_path / "b.zip", {"b.cha": bytes(3 << 20)})
    for path, name in ((tmp_path / "a.cha", r"a\.cha"), (tmp_path / "b.zip", r"b\.cha")):
        with pytest.raises(ValueError, match=rf"{name} has 3 MB, above the limit of 2 MB \(--max-file-mb\)"):
            file_names([path], ".cha", Limits(max_file_mb=2))
        assert len(file_names([path], ".cha")) == 1
    with pytest.raises(ValueError, match="max_file_mb: expected an integer of at least 1, got 0"):
        Limits(max_file_mb=0)


@pytest.mark.parametrize("what", ["folder", "file", "archive"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, what: str) -> None:
    as_folder(tmp_path / "outside")
    as_zip(tmp_path / "outside" / "z.zip", {"z.cha": b"z"})
    target = {"folder": "a", "file": "a/1.cha", "archive": "z.zip"}[what]
    (tmp_path / "in").mkdir()
    link = tmp_path / "in" / {"folder": "link", "file": "l.cha", "archive": "l.zip"}[what]
    link.symlink_to(tmp_path / "outside" / target)
    with pytest.raises(
        ValueError, match=rf"{link.name} is a link that leads out of its folder, to .* \(--follow-links\)"
    ):
        file_names([tmp_path / "in"], ".cha")
    found = file_names([tmp_path / "in"], ".cha", Limits(follow_links=True))
    assert found == {"folder": ["link/1.cha", "link/2.cha"], "file": ["l.cha"], "archive": ["z.cha"]}[what]


# Every file that is not read is listed, and no file counts twice.


def test_files_reached_twice_are_read_once_and_listed(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "folder")
    (root / "again").symlink_to(root / "a")
    (root / "loop").symlink_to(root)
    (root / "nothing.cha").symlink_to(root / "gone.cha")
    (root / "c" / "same.cha").hardlink_to(root / "a" / "1.cha")
    left_out: list[tuple[str, str]] = []
    paths = [
        root,
        tmp_path / "folder",
        root / "a",
        root / "a" / "2.cha",
        as_zip(tmp_path / "a.zip"),
        tmp_path / "a.zip",
    ]
    assert sorted(file_names(paths, ".cha", left_out=left_out)) == sorted(
        [name for name in FILES if ".cha" in name] * 2
    )
    reasons = {Path(name).name: reason for name, reason in left_out}
    assert set(reasons) == {"again", "loop", "nothing.cha", "same.cha", "folder", "a", "2.cha", "a.zip"}
    assert reasons["nothing.cha"] == "is not a file, or is a broken link"
    assert reasons["2.cha"] == "is the same file as a/2.cha, which is read"
    assert reasons["a"].startswith("is the same folder as ")


def test_upper_case_and_archives_in_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "x" / "Y").mkdir(parents=True)
    (tmp_path / "x" / "A.CHA").write_bytes(b"a")
    as_zip(tmp_path / "x" / "Y" / "B.ZIP", {"in/b.Cha": b"b", "deep.zip": b"?", "notes.pdf": b"?"})
    as_tar(tmp_path / "x" / "c.tar.gz", {"c.cha": b"c"}).rename(tmp_path / "x" / "c.TGZ")
    left_out: list[tuple[str, str]] = []
    found = dict(files_in([tmp_path / "x"], ".cha", left_out=left_out))
    assert found == {"A.CHA": b"a", "Y/in/b.Cha": b"b", "c.cha": b"c"}
    assert left_out == [("Y/B.ZIP: deep.zip", "is an archive within an archive, which is not opened")]


@pytest.mark.parametrize(
    ("name", "shown"), [(b"caf\xe9.cha", r"caf\xe9.cha"), (b"a\nb.cha", r"a\nb.cha"), ("é.cha".encode(), "é.cha")]
)
def test_every_name_is_one_line_of_utf8(tmp_path: Path, name: bytes, shown: str) -> None:
    with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
        file.write(b"x")
    assert list(files_in([tmp_path], ".cha")) == [(shown, b"x")]
    as_tar(tmp_path / "a.tar", {os.fsdecode(name): b"y"})
    assert list(files_in([tmp_path / "a.tar"], ".cha")) == [(shown, b"y")]


@pytest.mark.parametrize("end", ["tbz2", "tbz", "txz"])
def test_short_endings_of_packed_archives_are_read(tmp_path: Path, end: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.cha").write_text("x")
    with tarfile.open(tmp_path / f"b.{end}", "w:xz" if end == "txz" else "w:bz2") as archive:
        archive.add(tmp_path / "in" / "a.cha", "a.cha")
    assert file_names([tmp_path / f"b.{end}"], ".cha") == ["a.cha"]
    assert sorted(file_names([tmp_path], ".cha")) == ["a.cha", "in/a.cha"]


@pytest.mark.parametrize(
    "name", ["a.7z", "a.RAR", "a.tar.zst", "a.tar.Z", "a.tar.lz", "a.cha.gz", "a.CHA.bz2", "a.cha.xz", "a.cha.zst"]
)
def test_unsupported_archives_are_listed(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr(f"deep/{name}", b"x")
    left_out: list[tuple[str, str]] = []
    assert file_names([tmp_path], ".cha", left_out=left_out) == []
    (unpacked, reason), (inside, why) = left_out
    assert (inside, unpacked) == (f"b.zip: deep/{name}", f"in/{name}")
    assert why == "is an archive within an archive, which is not opened"
    assert reason.startswith("is packed in an unsupported format (supported: .zip, .tar")
    with pytest.raises(ValueError, match=r"paths: expected a folder, a .cha file, or an archive \(.zip, .tar"):
        file_names([tmp_path / "in" / name], ".cha")


@pytest.mark.parametrize("paths", ["a.cha", b"a.cha", None, 3, [3], [None], ["a.cha", 3]], ids=repr)
def test_paths_are_a_list_of_paths(paths: object) -> None:
    with pytest.raises(ValueError, match=r"paths: expected a list of paths, got "):
        file_names(paths, ".cha")  # type: ignore[arg-type]
