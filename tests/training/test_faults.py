"""Every change of the disk fails, is cut off by a kill, or is followed by a power cut, each in turn.

A disk is told by what :mod:`symground.disk` asks of the operating system. What a power cut leaves is reckoned here, at
its worst: of a file the content that was synced last, and of a folder either the names that were synced last, or those
it has now.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from symground import disk
from symground.data import Corpus
from symground.folders import checkpoint_folder, read_json, write_json
from symground.models.architectures.lstm import LSTMConfig, LSTMForCausalLM
from symground.sealed import SUMS, damage, discard, sealed, settle
from symground.training import Hardware, TrainSettings, loop, train
from symground.training.checkpoints import resume_folders

pytestmark = pytest.mark.trains

CALLS = ("write", "fsync", "replace", "mkdir", "unlink", "rmdir", "chmod")
#: path → content, None of a folder
State = dict[str, bytes | None]


def state_of(root: Path) -> State:
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))
    }


def laid_out(state: State, root: Path) -> Path:
    root.mkdir(parents=True)
    for name, content in state.items():
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
    return root


class Watched:
    """``os`` for symground.disk: before each call that changes something, ``before`` is told its name and arguments."""

    def __init__(self, before: Callable[[str, tuple[Any, ...]], None]) -> None:
        self._before = before
        self.after: Callable[[str, tuple[Any, ...]], None] = lambda *_: None

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any) -> Any:
            self._before(name, arguments)
            done = real(*arguments)
            self.after(name, arguments)
            return done

        return call


@contextmanager
def watched(watch: Watched) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(disk, "os", watch)
        yield


class Cuts:
    """All states of a folder that a kill or a power cut may leave while something is done in it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers: dict[int, int] = {}  # of an inode; a new file may be given the inode of one that is gone
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._folders: set[int] = set()
        self._synced(root)
        self.found: dict[int, tuple[State, set[str]]] = {}
        self.promised: set[str] = set()

    def watch(self) -> Watched:
        watch = Watched(self._before)
        watch.after = self._after
        return watch

    def worst(self) -> State:
        """What a power cut would leave now: names and content as they were synced last."""
        return dict(self._durable(self._number(self._root), ""))

    def _number(self, path: Path | int) -> int:
        return self._numbers.setdefault(os.stat(path).st_ino, len(self._numbers) + 1000 * len(self._content))

    def _forget(self, path: Path) -> None:
        if path.exists():
            self._numbers.pop(path.stat().st_ino, None)

    def _synced(self, path: Path) -> None:
        if path.is_dir():
            self._folders.add(self._number(path))
            self._names[self._number(path)] = {inside.name: self._number(inside) for inside in path.iterdir()}
            self._folders |= {self._number(inside) for inside in path.iterdir() if inside.is_dir()}
        else:
            self._content[self._number(path)] = path.read_bytes()

    def _before(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "fsync":
            path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))
            if self._root not in (path, *path.parents):
                return
            state = state_of(self._root)
            if path.is_file():  # half of it was written when the kill came
                key = str(path.relative_to(self._root))
                content = state[key] or b""
                self._keep({**state, key: content[: len(content) // 2]})
            self._keep(state)
        else:
            self._keep(state_of(self._root))

    def _after(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "fsync":
            path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))
            if self._root in (path, *path.parents):
                self._synced(path)
        self._keep(self.worst())
        now = state_of(self._root)
        self._keep({
            key: content if content is None else self._content.get(self._number(self._root / key), b"")
            for key, content in now.items()
        })  # fmt: skip

    def _durable(self, folder: int, above: str) -> Iterator[tuple[str, bytes | None]]:
        for name, number in self._names.get(folder, {}).items():
            if number in self._folders:
                yield above + name, None
                yield from self._durable(number, f"{above}{name}/")
            else:
                yield above + name, self._content.get(number, b"")

    def _keep(self, state: State) -> None:
        self.found.setdefault(hash(tuple(sorted(state.items(), key=lambda item: item[0]))), (state, set(self.promised)))


def failing_at(number: int) -> Watched:
    left = iter(range(number))

    def full(_: str, __: tuple[Any, ...]) -> None:
        if next(left, None) is None and not failed:
            failed.append(1)
            raise OSError(errno.ENOSPC, "No space left on device")

    failed: list[int] = []
    return Watched(full)


def is_full(what: Callable[[], object]) -> bool:
    """Whether it ends with the error of a full disk."""
    try:
        what()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return True
    return False


def calls_of(what: Callable[[], object]) -> int:
    counted: list[str] = []
    with watched(Watched(lambda name, _: counted.append(name))):
        what()
    return len(counted)


def whole(folder: Path, letter: str) -> bool:
    return damage(folder, told=True) is None and (folder / "a").read_text() == letter and (folder / "b").exists()


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
        # An error leaves the old one, or is of what comes after the new one is in its place.
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
        write_json(root / "deep" / "er" / "a.json", [text])

    number = calls_of(lambda: change(tmp_path / "counted"))
    assert number >= 6
    for old in (None, "old"):
        for at in range(number if old is None else number - 6):  # its three folders are there
            root = tmp_path / f"{old}{at}"
            file = root / "deep" / "er" / "a.json"
            if old is not None:
                write_json(file, [old])
            with watched(failing_at(at)):
                assert is_full(lambda: change(root)), at  # noqa: B023
            if old is not None or file.exists():
                assert read_json(file) in ([old], [text])
                assert [path.name for path in file.parent.iterdir()] == ["a.json"]
        root = tmp_path / f"{old}cut"
        root.mkdir()
        if old is not None:
            change_old = root / "deep" / "er" / "a.json"
            write_json(change_old, [old])
        cuts = Cuts(root)
        for path in (root / "deep", root / "deep" / "er", root / "deep" / "er" / "a.json"):
            if path.exists():
                cuts._synced(path)
        with watched(cuts.watch()):
            change(root)
        assert read_json(root / "deep" / "er" / "a.json") == [text]
        for at, (state, _) in enumerate(cuts.found.values()):
            left = laid_out(state, tmp_path / f"{old}cut{at}") / "deep" / "er" / "a.json"
            if old is not None or left.exists():
                assert read_json(left) in ([old], [text])
        assert json.loads(cuts.worst()["deep/er/a.json"] or b"") == [text], "what was written is not on the disk"


SETTINGS = TrainSettings(model="lstm-1l", steps=4, batch_size=2, length=12, warmup=2, checkpoints="0,2")
OFTEN = Hardware(resume_every=0, device="cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of few numbers, so that states of the disk are small."""

    def create(_: str, vocabulary: int, seed: int, **__: object) -> LSTMForCausalLM:
        torch.manual_seed(seed)
        return LSTMForCausalLM(LSTMConfig(vocab_size=vocabulary, hidden_size=4, num_hidden_layers=1))

    monkeypatch.setattr(loop, "create", create)
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)


def outcome(run: Path) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    """All files of the checkpoints, and the metrics without their times."""
    files = {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "checkpoints").rglob("*.*"))}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return files, [{name: line[name] for name in line if "second" not in name} for line in lines]


def check_named(run: Path) -> None:
    """Whatever has its final name is whole."""
    for kind in ("checkpoints", "resume"):
        for folder in (run / kind).glob("step-*"):
            assert damage(folder, told=True) is None, folder


@pytest.fixture
def asleep() -> Watched:
    """A disk that is not waited for."""
    watch = Watched(lambda *_: None)
    watch.__dict__["fsync"] = lambda _: None
    return watch


def test_a_training_that_is_cut_off_anywhere_goes_on_to_the_same_bits(
    corpus: Corpus, tmp_path: Path, small: None, asleep: Watched
) -> None:
    root, name = tmp_path / "whole", "model/seed0"
    root.mkdir()
    cuts = Cuts(root)
    with watched(cuts.watch()):
        train(
            corpus, SETTINGS, root / name, OFTEN,
            at_checkpoint=lambda run, step: cuts.promised.add(str(checkpoint_folder(run, step).relative_to(root))),
        )  # fmt: skip
    expected = outcome(root / name)
    assert [line["step"] for line in expected[1]] == [1, 2, 3, 4]
    assert outcome(laid_out(cuts.worst(), tmp_path / "worst") / name) == expected, "what was told is not on the disk"
    assert len(cuts.found) > 100
    for number, (state, promised) in enumerate(cuts.found.values()):
        run = laid_out(state, tmp_path / f"cut{number}") / name
        check_named(run)
        for folder in promised:
            assert damage(tmp_path / f"cut{number}" / folder, told=True) is None, (
                "a checkpoint that was told of is lost"
            )
        with watched(asleep):
            train(corpus, SETTINGS, run, OFTEN)
        assert outcome(run) == expected, sorted(state)
        assert not list(run.rglob("*partial*"))


def test_a_training_that_meets_an_error_anywhere_keeps_what_was_saved_and_goes_on(
    corpus: Corpus, tmp_path: Path, small: None, asleep: Watched
) -> None:
    settings = replace(SETTINGS, steps=2, checkpoints="0")
    number = calls_of(lambda: train(corpus, settings, tmp_path / "whole", OFTEN))
    expected = outcome(tmp_path / "whole")
    for at in range(number):
        run = tmp_path / f"error{at}"
        watch = failing_at(at)
        told: list[Path] = []
        with watched(watch), pytest.raises(OSError, match="No space left on device"):
            train(
                corpus, settings, run, OFTEN,
                at_checkpoint=lambda run, step: told.append(checkpoint_folder(run, step)),  # noqa: B023
            )  # fmt: skip
        check_named(run)
        for folder in told:
            assert damage(folder, told=True) is None
        with watched(asleep):
            train(corpus, settings, run, OFTEN)
        assert outcome(run) == expected, at


def test_a_resumed_training_does_not_lose_its_history(corpus: Corpus, tmp_path: Path, small: None) -> None:
    """Neither when metrics.jsonl is removed, nor when it is cut short."""
    train(corpus, SETTINGS, tmp_path / "whole", OFTEN)
    expected = outcome(tmp_path / "whole")
    for content in (None, "", '{"step": 1, "lo'):
        run = tmp_path / f"run{content}"
        state = state_of(tmp_path / "whole")
        laid_out(state, run)
        disk.remove(checkpoint_folder(run, 4))
        (run / "metrics.jsonl").unlink()
        if content is not None:
            (run / "metrics.jsonl").write_text(content)
        train(corpus, SETTINGS, run, OFTEN)
        assert outcome(run) == expected


@pytest.mark.parametrize("spoilt", ["missing", "not JSON", "a list"])
def test_a_state_without_checksums_is_passed_over(
    corpus: Corpus, tmp_path: Path, small: None, spoilt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(corpus, SETTINGS, tmp_path, OFTEN)
    expected = outcome(tmp_path)
    disk.remove(checkpoint_folder(tmp_path, 4))
    newest = resume_folders(tmp_path)[-1]
    (newest / "state.safetensors").write_bytes(b"half")
    (newest / SUMS).unlink()
    if spoilt != "missing":
        (newest / SUMS).write_text({"not JSON": "{", "a list": "[]"}[spoilt])
    train(corpus, SETTINGS, tmp_path, OFTEN)
    assert f"{newest} is damaged ({SUMS} is {'missing' if spoilt == 'missing' else 'none'})" in capsys.readouterr().err
    assert outcome(tmp_path) == expected


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\udce9"])
def test_a_damaged_config_stops_only_what_was_trained(
    corpus: Corpus, tmp_path: Path, small: None, content: str
) -> None:
    fresh, trained = tmp_path / "fresh", tmp_path / "trained"
    for run in (fresh, trained):
        if run is trained:
            train(corpus, SETTINGS, run, OFTEN)
        run.mkdir(exist_ok=True)
        (run / "config.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    train(corpus, SETTINGS, fresh, OFTEN)
    assert read_json(fresh / "config.json")["settings"]["steps"] == 4
    with pytest.raises(ValueError, match=r"config\.json: .*Remove the file to have it taken for theirs"):
        train(corpus, SETTINGS, trained, OFTEN)
    (trained / "config.json").unlink()
    train(corpus, SETTINGS, trained, OFTEN)
    assert outcome(trained) == outcome(fresh)
