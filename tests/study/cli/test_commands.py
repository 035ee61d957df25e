"""The command line itself: its imports, its answers to wrong usage, and its output on any console."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from symground.analysis.results import Table
from symground.analysis.statistics.intervals import bootstrap_interval, resampled
from symground.cli import COMMANDS, GROUPS, main
from symground.data import Corpus
from symground.errors import check_device, require
from symground.recipes import study as recipe
from symground.recipes.heads import summary
from symground.training import Hardware, TrainSettings, train
from symground.version import VERSION


def says(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("symground: ")
    return line.removeprefix("symground: ")


IMPORTED = """
import sys
before = set(sys.modules)
from symground.cli import main
code = main(sys.argv[1:])
print(code, *sorted({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))
"""


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["-h"], 0), (["--version"], 0), ([], 2), (["trian"], 2), (["--fly"], 2)]
)
def test_nothing_is_imported_before_it_is_known_what_to_do(arguments: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{code} symground", "only Python's own library, and this package"


def test_the_overview_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"\n  {name} " in told
        assert " ".join(command.help.split()[:4]) in told
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"symground {VERSION}\n"


def test_the_overview_is_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for group, commands in GROUPS.items():
        (listed,) = (part for part in told.split("\n\n") if part.startswith(f"{group}:"))
        assert [line.split()[0] for line in listed.splitlines() if line[2:3].strip()][1:] == list(commands)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_of_a_command_shows_what_it_does_and_the_defaults(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    told = capsys.readouterr().out
    assert f"usage: symground {name}" in told
    assert " ".join(COMMANDS[name].help.split()[:4]) in " ".join(told.split())
    assert "(default: " in told or name == "build", "which takes nothing"
    assert "(default: )" not in told


@pytest.mark.parametrize(("name", "shown"), [("run", "CORPUS …"), ("report", "PATH …"), ("train", "STUDY")])
def test_help_names_positional_arguments(name: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f" {shown}  " in capsys.readouterr().out


def test_help_does_not_keep_the_line_breaks_of_docstrings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["analyze", "--help"]) == 0
    assert 'shares, maps), "lens", "interventions", "sweep", ' in capsys.readouterr().out


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_mistyped_command_is_told_which_was_meant(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    typed = name[0] + name[2] + name[1] + name[3:]
    assert says([typed, "x"], capsys) == (
        f"expected a command (symground --help lists them); got {typed!r}, perhaps {name}"
    )


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["train", "x", "--stpes", "3"], "--steps"),
        (["analyze", "x", "--drawss", "3"], "--draws"),
        (["report", "x", "--figure"], "--figures"),
        (["data", "generated", "--out", "x", "--generated.scene", "4"], "--generated.scenes"),
    ],
)
def test_a_mistyped_option_is_told_which_was_meant(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = says(arguments, capsys)
    assert told.startswith("Unrecognized options: ")
    assert f"perhaps {meant}" in told
    assert f"(symground {arguments[0]} --help lists the options)" in told


def test_a_dial_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A dial is required, because the settings' default would train for an hour."""
    assert says(["dials"], capsys).startswith("Missing from symground dials: ")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["dials", "gap", "--values"], "--values"),
        (["run", "generated", "--models", "--steps", "4"], "--models"),
        (["analyze", "x", "--intervene-steps"], "--intervene-steps"),
        (["sweep", "generated", "--dials"], "--dials"),
    ],
)
def test_an_option_without_its_values_is_refused(
    arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says(arguments, capsys).startswith(f"{option}: expected at least one value; got none")


def test_a_recipe_is_one_where_the_corpus_stands(capsys: pytest.CaptureFixture[str]) -> None:
    of_run, of_paper = (
        "steps: expected an integer of at least 1, got 0",
        "scale: expected one of 'study', 'cpu'; got 'tiny'",
    )
    assert says(["run", "generated", "--out", "paper-childes", "--steps", "0"], capsys).startswith(of_run)
    for before in ([], ["--jobs", "2"], ["--compile"], ["--models", "gpt2-4l", "--steps", "8"]):
        assert says(["run", *before, "paper-childes", "x", "--scale", "tiny"], capsys).startswith(of_paper)
    for arguments, option in ((["--jobs", "2", "paper-childes"], "--scale "), (["--out", "paper-childes"], "--strict")):
        assert main(["run", *arguments, "--help"]) == 0
        told = capsys.readouterr().out
        assert told.count("usage: symground run") == 1
        assert f" {option}" in told


@pytest.mark.parametrize("command", ["", "run", "dials"])
def test_a_console_of_ascii_shows_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert main([*command.split(), "--help"]) == 0
    sys.stdout.flush()
    text = shown.getvalue().decode("ascii")
    assert "usage: symground" in text
    assert "..." in text, "…"
    assert "?" not in text.replace("?)", "")


def test_who_stops_reading_hears_nothing_of_it() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "symground.cli", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


TINY = TrainSettings(model="lstm-1l", steps=2, batch_size=2, length=12)


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "tpu", "cpu:1"])
def test_a_device_that_there_is_not(corpus: Corpus, tmp_path: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        check_device(device)
        return
    with pytest.raises(ValueError, match=rf"^device: expected 'cpu'.*; got '{device}'") as caught:
        train(corpus, TINY, tmp_path / "run", Hardware(device=device))
    assert ("CUDA is not available" in str(caught.value)) == (device.startswith("cuda") and device != "cpu:1")
    assert not (tmp_path / "run").exists()


def test_what_is_not_installed_is_named(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"TensorBoard's files need the package tensorboard, .*pip install 'tensorb"):
        train(corpus, TINY, tmp_path / "run", Hardware(tensorboard=True))
    assert not (tmp_path / "run").exists()
    (tmp_path / "of_ours.py").write_text("import no_such.package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"these need the package no_such, .*pip install 'both'"):
        require("of_ours", "these", "both")
    with pytest.raises(ImportError, match="these need the package nor_this, "):
        require("nor_this.part", "these")


def test_no_minus_stands_before_a_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A number that is not zero keeps its digits, and what rounding leaves of one that is zero has no sign."""
    row = dict.fromkeys(("heads_per_example", "original", "intervened", "control", "control_sd"), -1e-14)
    tables: dict[str, dict[str, Any]] = {
        "gain": {"target": ["a", "b"], **{key: [-2e-14, 1e-14] for key in ("matched", "mismatched", "gain")}},
        "interventions": {
            "kind": ["both"],
            "denominator": ["row"],
            "span": [0],
            "examples": [4],
            "short": [0],
            "draws": [9],
            **{k: [x] for k, x in row.items()},
        },
    }
    for name, columns in tables.items():
        table = Table(tmp_path, name)
        table.add(pd.DataFrame(columns), "model", 0, 1)
        table.save()
    recipe.summarise(tmp_path)
    pd.DataFrame({"factor": [1.0], "accuracy": [-0.0001]}).to_parquet(tmp_path / "steering.parquet")
    told = capsys.readouterr().err + summary(tmp_path)
    assert "gain 0.00 nats" in told or "gain 0.00 [" in told
    assert "0.000" in told
    assert "-0.00" not in told
    assert "0.00 per example; surprisal 0.00, silenced 0.00" in told


@pytest.mark.parametrize("values", [[0.0] * 5, [1.0, 1.0, 1.0, 1.0, 2.0], [0.0, 1.0], [3.0, 3.0, 4.0]])
def test_scipy_is_not_heard_where_resamples_are_alike(values: list[float]) -> None:
    rows = np.array([values])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = bootstrap_interval(rows)
        some, other = resampled(rows.T, lambda sample: sample.mean(1))
    assert some[0] <= rows.mean() <= other[0]
    assert np.isnan(low[0]) or low[0] <= rows.mean() <= high[0]
