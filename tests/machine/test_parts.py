"""Parts that fail in every way: each names itself, the case it was in, and how to go on without it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from symground import ops
from symground.errors import SWITCHES
from symground.machine import parts
from symground.machine.accuracy import has
from symground.machine.cases import cases
from symground.machine.finding import Finding, said_by
from symground.machine.parts import Part, accuracy_parts, run_one
from tests.ops.common.drawn import OPS, implementations

#: Run by Python when the process of a part starts. The first of two calls has the fault.
PLANT = """
import os
import random
import sys
import torch
from symground.machine import accuracy, cases
from symground.ops.vocabulary import tiles
form = ""
def two():
    global form
    for case in cases.cases():
        if case.op == "candidate_surprisal":
            form = case.form
            yield case
accuracy.cases = two
right = tiles._surprisal
def planted(*given):
    found, lse = right(*given)
    if form == "shared":
        {fault}
    return found, lse
tiles._surprisal = planted
"""
#: Fault → what is said of the call, and whether the process goes on.
FAULTS = {
    "return found * 1.5, lse": ("result 0 is off by 0", True),
    "return found * float('nan'), lse": ("result 0 is off by inf", True),
    "return found + 3e-6 * random.random(), lse": ("20 repeats do not give the same bits", True),
    "raise RuntimeError('CUDA error: misaligned address\\nCompile with `TORCH_USE_CUDA_DSA`')": (
        "RuntimeError: CUDA error: misaligned address",
        True,
    ),
    "{}['a key']": ("KeyError: 'a key'", True),
    "os.abort()": ("its process was ended by SIGABRT", False),
    "os.kill(os.getpid(), 40)": ("its process was ended by signal 40", False),
    "os._exit(0)": ("its process ended early (exit code 0)", False),
    "sys.exit(0)": ("its process ended early (exit code 0)", False),
    "os._exit(3)": ("its process ended early (exit code 3)", False),
    "import time; time.sleep(1000)": ("it said nothing for 45 seconds", False),
    "return found, lse": ("", True),
}
TORCH = Part("torch", "cpu", impl="torch", dtypes=("float32",))
TWO = TORCH._replace(dtypes=("float32", "float64"))
CALLS = [(f"candidate_surprisal ({form})", dtype) for dtype in ("float32", "float64") for form in ("shared", "by row")]


def plant(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_every_call_has_its_line(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, goes_on = FAULTS[fault]
    plant(PLANT.replace("{fault}", fault), tmp_path, monkeypatch)
    monkeypatch.setattr(parts, "PATIENCE", 45 if "sleep" in fault else 300)
    found, _ = run_one(TWO, 1)
    assert [(f.op, f.dtype) for f in found] == CALLS
    assert found[0].status == ("wrong" if said else "right")
    assert found[0].said.startswith(said)
    if goes_on:
        assert [f.status for f in found if "by row" in f.op] == ["right", "right"]
    else:
        assert [f.status for f in found[1:]] == ["untried"] * 3
    assert {f.part for f in found} == {"torch"}


BEGINS = ['{"plan": ["a", "b"]}', '{"begins": ["a", "float32"]}']
A_RIGHT = [*BEGINS, json.dumps({"finding": Finding("torch", "cpu", "right", "", "a", "float32", 0.0, 0.0)._asdict()})]
ALL = [*A_RIGHT, A_RIGHT[-1].replace('"a"', '"b"')]


@pytest.mark.parametrize(
    ("lines", "code", "calls"),
    [
        ([*ALL, '{"ended": true}'], 0, ["right", "right"]),
        (ALL, 0, ["right", "right", "wrong"]),
        ([*A_RIGHT, '{"ended": true}'], 0, ["right", "wrong", "untried"]),
        (A_RIGHT, 0, ["right", "wrong", "untried"]),
        (BEGINS, 0, ["wrong", "untried"]),
        ([], 0, ["wrong"]),
        (["what a library prints", "17", *A_RIGHT], -9, ["right", "wrong", "untried"]),
        (A_RIGHT, None, ["right", "wrong", "untried"]),
        ([*ALL, '{"ended": true}'], -11, ["right", "right", "wrong"]),
    ],
)
def test_what_a_process_did_is_compared_with_what_it_was_to_do(
    lines: list[str], code: int | None, calls: list[str]
) -> None:
    found, _ = parts._found(TORCH, parts._read(TORCH, lines), code, "")
    assert [f.status for f in found] == calls


@pytest.mark.parametrize("number", range(1, 65))
def test_every_signal_is_told(number: int) -> None:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    assert parts._ending(-number, "Traceback\n") == f"its process was ended by {name}"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CUDA error: x\nFor debugging consider\nCompile with `TORCH_USE_CUDA_DSA`\n"), "CUDA error: x"),
        (RuntimeError("\n\n  first  \nsecond"), "first"),
        (RuntimeError("at 3:4:\n  x = tl.dot(a)\n  ^\nmissing b"), "at 3:4: missing b"),
        (RuntimeError("only:"), "only:"),
    ],
)
def test_of_an_error_the_line_is_shown_that_says_what_happened(error: Exception, said: str) -> None:
    assert said_by(error) == f"RuntimeError: {said}"
    assert said_by(AssertionError()) == "AssertionError"


def test_of_a_traceback_the_first_line_of_the_message_is_shown() -> None:
    errors = "a warning\nTraceback (most recent call last):\n  File 'x'\n    f()\nOSError: no libcudart\nCompile with\n"
    assert parts._ending(1, errors) == "OSError: no libcudart"
    assert parts._ending(3, "") == "its process ended early (exit code 3)"


@pytest.mark.parametrize(
    ("off", "said"),
    [
        ("flash, torch", "switched off by SYMGROUND_DISABLE"),
        ("cpu", "it serves 'cpu', which is switched off by SYMGROUND_DISABLE"),
    ],
)
def test_a_part_that_is_switched_off_is_not_run(off: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYMGROUND_DISABLE", off)
    monkeypatch.setattr(parts, "_output", None)
    part = TORCH if "torch" in off else Part("extension", impl="cpu")
    ((found,), _) = run_one(part, 1)
    assert (found.status, found.said) == ("absent", said)


def test_what_is_not_installed_is_no_fault() -> None:
    (found,), _ = run_one(Part("mamba_ssm", what="loads", package="mamba_ssm"), 1)
    assert (found.status, found.said) == ("absent", "it is not installed")


def test_every_implementation_and_every_op_has_its_part() -> None:
    """All but `parts` of Mamba-2, whose steps are those of others."""
    names = {name for op in OPS for name in implementations(op)} - {"reference", "parts"}
    assert {part.impl for part in accuracy_parts("cuda")} == names
    assert {part.name for part in accuracy_parts("cuda")} == set(SWITCHES)
    assert {part.name for part in accuracy_parts(None)} == {"extension", "cpu", "torch"}
    assert {case.op for case in cases()} == set(OPS) == set(ops.__all__) - {"explain"}
    assert has("ssd", "mamba_ssm")
    assert not has("attention", "mamba_ssm")
