"""Each option of ``python -m benchmarks`` for a path or a number names itself, what it expected and what came."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: kernel tests")

from benchmarks.__main__ import MEASUREMENTS
from symground.kernels.common.configs import tables
from tests.ops.common.triton_device import INTERPRETED  # the interpreter is chosen for this process

#: Measurement → the arguments before a path that is read, and what is in a path that is right: a file in a folder, or
#: a file itself; None is a folder.
READ = {
    ("plot", ""): ("", '{"rows": []}'),
    ("suites", "--compare"): ("", '{"rows": []}'),
    ("launch-cost", "--before"): ("", '{"rows": []}'),
    ("forecast", "--beside"): ("tiles.json", '{"rows": []}'),
    ("before-after", "--before"): ("symground/ops", None),
    ("before-after", "--after"): ("symground/ops", None),
    ("gpu", "--data"): ("data", None),
}
WRITTEN = (
    ("plot", "--out"), ("launch-cost", "--out"), ("scaling", "--out"), ("attnread", "--out"), ("training-log", "--out"),
    ("attention-scale", "--out"),
)  # fmt: skip
FOLDERS = (("gpu", "--out"), ("suites", "--out"))
#: Measurement → its options that take a whole number, and numbers that are too small or too large.
NUMBERS = {
    ("kernels", "--head-size"): ("0", "-64", "577"),
    ("kernels", "--length"): ("0", "-3"),
    ("forecast", "--size"): ("0", "-64", "300"),
    ("forecast", "--jobs"): ("0",),
    ("launch-cost", "--rounds"): ("0",),
    ("launch-cost", "--calls"): ("0", "-1"),
    ("attnread", "--length"): ("0", "15"),
    ("attnread", "--rounds"): ("0",),
    ("report", "--seeds"): ("0",),
    ("report", "--contexts"): ("-1",),
}
ROOT = Path(importlib.import_module("benchmarks").__file__ or "").parent
PAGES = [ROOT.parent / "README.md", ROOT / "README.md", *sorted((ROOT.parent / "docs").glob("*.md"))]
#: The commands of all pages: each the words after ``python -m benchmarks``.
COMMANDS = [
    line.partition("#")[0].split()[3:]
    for page in PAGES
    for block in re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    for line in block.splitlines()
    if line.startswith("python -m benchmarks ")
]

Patch, Capture = pytest.MonkeyPatch, pytest.CaptureFixture[str]


def ended(name: str, arguments: list[str], monkeypatch: Patch) -> object:
    """The exit status of a measurement whose arguments end it before it measures."""
    monkeypatch.setattr(sys, "argv", [f"python -m benchmarks {name}", *filter(None, arguments)])
    # Some measurements switch Triton's interpreter off when they are imported. The kernels of this process are imported
    # before, and the processes that other tests start have the variable as it was.
    tables()
    monkeypatch.setenv("TRITON_INTERPRET", str(int(INTERPRETED)))
    with pytest.raises(SystemExit) as end:
        importlib.import_module(MEASUREMENTS[name][0]).main()
    return end.value.code


def refused(name: str, arguments: list[str], monkeypatch: Patch, capsys: Capture) -> str:
    """What is said of arguments that do not parse."""
    assert ended(name, arguments, monkeypatch) == 2
    return capsys.readouterr().err


def test_commands_of_the_pages_exist(monkeypatch: Patch, capsys: Capture) -> None:
    assert len(COMMANDS) >= 4
    for command in COMMANDS:
        name = command[0] if command and not command[0].startswith("-") else "suites"
        assert ended(name, ["--help"], monkeypatch) == 0
        known = re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)
        assert {word for word in command if word.startswith("--")} <= {*known}, name


@pytest.mark.parametrize("came", ["missing", "folder", "empty", "no JSON", "another object", "another kind"])
@pytest.mark.parametrize(("name", "option"), READ)
def test_a_path_that_is_read(
    name: str,
    option: str,
    came: str,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: Capture,
) -> None:
    inside, _ = READ[name, option]
    path = tmp_path / "given"
    file = path / inside if inside else path
    if came == "folder" and not inside:
        path.mkdir()
    elif came != "missing":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text({"no JSON": "{", "another object": "{}", "another kind": '{"rows": 3}'}.get(came, ""))
    said = refused(name, [option, str(path)], monkeypatch, capsys)
    assert f"argument {option or 'result'}: expected " in said
    assert f"; got {path}" in said


@pytest.mark.parametrize(("name", "option"), WRITTEN)
def test_a_file_that_cannot_be_written(
    name: str, option: str, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    (tmp_path / "result.json").write_text('{"rows": []}')
    before = [str(tmp_path / "result.json")] if name == "plot" else []
    for path in (tmp_path, tmp_path / "none" / "file.json"):
        said = refused(name, [*before, option, str(path)], monkeypatch, capsys)
        assert f"argument {option}: expected a file to write, in a folder that exists; got {path}" in said


@pytest.mark.parametrize(("name", "option"), FOLDERS)
def test_a_folder_that_cannot_be_written(
    name: str, option: str, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        said = refused(name, [option, str(path)], monkeypatch, capsys)
        assert f"argument {option}: expected a folder, or a name for one; " in said
        assert f"; got {path}" in said


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_a_number_that_is_none(name: str, option: str, monkeypatch: Patch, capsys: Capture) -> None:
    for came in (*NUMBERS[name, option], "1.5", "many", ""):
        said = refused(name, [f"{option}={came}"], monkeypatch, capsys)
        assert f"argument {option}: expected a whole number " in said
        assert f"; got {came}" in said


@pytest.mark.parametrize("came", ["missing", "folder", "not a program"])
def test_a_program_that_does_not_run(came: str, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    path = tmp_path / "python"
    if came == "folder":
        path.mkdir()
    elif came != "missing":
        path.write_text("")
    said = refused("attnread", ["--python", str(path)], monkeypatch, capsys)
    assert f"argument --python: expected a program that can be run; got {path}" in said


@pytest.mark.parametrize("came", ["0", "-5", "inf", "nan", "long"])
def test_seconds_that_are_none(came: str, monkeypatch: Patch, capsys: Capture) -> None:
    said = refused("gpu", ["--out", "results", f"--budget={came}"], monkeypatch, capsys)
    assert f"argument --budget: expected seconds, a number above 0; got {came}" in said


def test_these_are_all() -> None:
    """No option of a measurement takes a path or a number that is not checked, but one that checks it by itself."""
    unchecked = {
        str(file.relative_to(ROOT))
        for file in ROOT.rglob("*.py")
        if re.search(r"type=(Path|int|float)\b", file.read_text(encoding="utf-8"))
    }
    assert unchecked == {"before_after.py"}  # whose --rounds says what it expects


@pytest.mark.parametrize(("name", "option"), [key for key in READ if key[0] != "gpu"])
def test_a_path_that_is_right_is_taken(
    name: str, option: str, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    inside, content = READ[name, option]
    path = tmp_path / "given"
    file = path / inside if inside else path
    if content is None:
        file.mkdir(parents=True)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(json.loads(content)))
    said = refused(name, [option, str(path), "--no-such-option"], monkeypatch, capsys)
    assert f"argument {option or 'result'}: " not in said
