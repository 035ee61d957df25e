"""A file or a sealed folder is the old one or the new one, whatever stops its change: an error, a kill, a power cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from symground.files import damage, discard, disk, read_json, sealed, settle, write_json
from tests.training.disk_faults import Cuts, calls_of, failing_at, is_full, laid_out, watched


def whole(folder: Path, letter: str) -> bool:
    return damage(folder, required=True) is None and (folder / "a").read_text() == letter and (folder / "b").exists()


def seal(folder: Path, letter: str) -> None:
    with sealed(folder) as partial:
        (partial / "a").write_text(letter)
        (partial / "b").write_text("and more")


def seal_again(folder: Path) -> None:
    seal(folder, "y")


def throw_away(folder: Path) -> None:
    discard(folder)


@pytest.mark.parametrize("change", [seal_again, throw_away])
def test_a_sealed_folder_is_whole_or_the_old_one_whatever_stops_its_change(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    name = "above/it"
    count = 0
    for number in range(100):
        root = tmp_path / f"error{number}"
        seal(root / name, "x")
        with watched(failing_at(number)):
            if not is_full(lambda: change(root / name)):  # noqa: B023
                break
        count += 1
        # An error leaves the old folder, or it comes after the new folder has its name.
        if change is seal_again:
            assert whole(root / name, "x") or whole(root / name, "y"), number
        else:
            assert whole(root / name, "x") or not (root / name).exists(), number
    assert count > 5
    root = tmp_path / "cut"
    seal(root / name, "x")
    cuts = Cuts(root)
    for path in (root / "above", *(root / name).iterdir(), root / name):
        cuts._synced(path)
    with watched(cuts.watch()):
        change(root / name)
    assert len(cuts.found) > 4
    for number, (state, _) in enumerate(cuts.found.values()):
        left = laid_out(state, tmp_path / f"cut{number}")
        if (left / name).exists():
            assert whole(left / name, "x") or whole(left / name, "y"), state.keys()
        settle(left / "above")
        there = sorted(path.name for path in (left / "above").iterdir())
        assert there == ["it"] if change is seal_again else there in (["it"], []), there
        if there:
            assert whole(left / name, "x") or whole(left / name, "y")


@pytest.mark.parametrize("text", ["new", ""])
def test_a_file_is_the_old_one_or_the_new_one_whatever_stops_its_change(tmp_path: Path, text: str) -> None:
    def change(root: Path) -> None:
        write_json(root / "deep" / "er" / "a.json", {"is": text})

    number = calls_of(lambda: change(tmp_path / "counted"))
    assert number >= 6
    for old in (None, "old"):
        for at in range(number if old is None else number - 6):  # its three folders are there
            root = tmp_path / f"{old}{at}"
            file = root / "deep" / "er" / "a.json"
            if old is not None:
                write_json(file, {"is": old})
            with watched(failing_at(at)):
                assert is_full(lambda: change(root)), at  # noqa: B023
            if old is not None or file.exists():
                assert read_json(file) in ({"is": old}, {"is": text})
                assert [path.name for path in file.parent.iterdir()] == ["a.json"]
        root = tmp_path / f"{old}cut"
        root.mkdir()
        if old is not None:
            change_old = root / "deep" / "er" / "a.json"
            write_json(change_old, {"is": old})
        cuts = Cuts(root)
        for path in (root / "deep", root / "deep" / "er", root / "deep" / "er" / "a.json"):
            if path.exists():
                cuts._synced(path)
        with watched(cuts.watch()):
            change(root)
        assert read_json(root / "deep" / "er" / "a.json") == {"is": text}
        for at, (state, _) in enumerate(cuts.found.values()):
            left = laid_out(state, tmp_path / f"{old}cut{at}") / "deep" / "er" / "a.json"
            if old is not None or left.exists():
                assert read_json(left) in ({"is": old}, {"is": text})
        assert json.loads(cuts.worst()["deep/er/a.json"] or b"") == {"is": text}, "what was written is not on the disk"


def test_a_file_that_is_given_the_inode_of_a_folder_that_is_gone_is_a_file(tmp_path: Path) -> None:
    """ext4 gives a new file the inode that was freed last, so the states of a cut go by a number of their own."""
    cuts = Cuts(tmp_path)
    with watched(cuts.watch()):
        disk.make_folder(tmp_path / "folder")
        disk.remove(tmp_path / "folder")
        disk.write_text(tmp_path / "file", "text")
    assert cuts.worst() == {"file": b"text"}
