"""Parts that fail in every way: each names itself, the case it was in, and how to go on without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from symground import ops
from symground.machine import command, parts
from symground.machine.accuracy import has
from symground.machine.cases import cases
from symground.machine.command import Check
from symground.machine.finding import Finding
from symground.machine.parts import Part, accuracy_parts, run_one
from symground.ops.common import disabled
from tests.ops.common.drawn import OPS, implementations

#: Run by Python when the process of a part starts.
PLANT = """
import os
import random
import torch
from symground.machine import accuracy, cases
from symground.ops.vocabulary import tiles
accuracy.cases = lambda: (c for c in cases.cases() if c.form == "by row")
right = tiles._of_candidates
def planted(*given):
    {fault}
tiles._of_candidates = planted
"""
FAULTS = {
    "return right(*given) * 1.5": "result 0 is off by 0",
    "return right(*given) + 3e-6 * random.random()": "20 repeats do not give the same bits",
    'raise RuntimeError("an illegal memory access")': (
        "RuntimeError: an illegal memory access in candidate_surprisal (by row)"
    ),
    "os.abort()": "its process was ended by SIGABRT in candidate_surprisal (by row)",
    "import time; time.sleep(1000)": "it did not end within 45 seconds in candidate_surprisal (by row)",
    "return right(*given)": "",
}
TORCH = Part("torch", "cpu", impl="torch", dtypes=("float32",))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(PLANT.format(fault=fault))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(parts, "PATIENCE", 45 if "sleep" in fault else 300)
    (found,), _ = run_one(TORCH, 1)
    assert found.status == ("wrong" if FAULTS[fault] else "right")
    assert FAULTS[fault] in found.said
    assert found.part == "torch"


def test_a_part_that_is_switched_off_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYMGROUND_DISABLE", "flash, torch")
    monkeypatch.setattr(parts.subprocess, "run", None)
    ((found,), _) = run_one(TORCH, 1)
    assert (found.status, found.said) == ("absent", "switched off by SYMGROUND_DISABLE")


def test_what_is_not_installed_is_no_fault() -> None:
    (found,), _ = run_one(Part("mamba_ssm", "cpu", impl="mamba_ssm", dtypes=("bfloat16",)), 1)
    assert (found.status, found.said) == ("absent", "it is not installed")


def test_every_implementation_and_every_op_has_its_part() -> None:
    """All but `parts` of Mamba-2, whose steps are those of others."""
    names = {name for op in OPS for name in implementations(op)} - {"reference", "parts"}
    assert {part.impl for part in accuracy_parts("cuda")} == names
    assert {part.name for part in accuracy_parts("cuda")} == set(disabled.NAMES)
    assert {part.name for part in accuracy_parts(None)} == {"extension", "cpu", "torch"}
    assert {case.op for case in cases()} == set(OPS) == set(ops.__all__) - {"explain"}
    assert parts.VARIABLE == disabled.VARIABLE
    assert has("ssd", "mamba_ssm")
    assert not has("attention", "mamba_ssm")


RIGHT = Finding("torch", "cpu", "right", "", "attention (causal)", "float32", 1e-6, 2e-6)
WRONG = RIGHT._replace(part="triton", device="cuda", status="wrong", said="dq is off by 0.3", error=0.3)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("wrong", [False, True])
def test_the_command_says_what_is_wrong_and_ends_with_it(
    as_json: bool, wrong: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"versions": {"torch": "2.11"}, "device": "cuda"}

    def run(asked: Any, at_once: int) -> Any:
        for part in asked:
            if part.what == "surroundings":
                yield [Finding("driver", "cuda", "right", "CUDA 13.0")], about
            elif part.what == "accuracy":
                yield [WRONG if wrong and part.name == "triton" else RIGHT], {}
            else:
                yield [Finding(part.what, part.device, "right", "triton", "attention", "bfloat16")], {}

    monkeypatch.setattr(command, "run", run)
    assert Check(json=as_json).run() == int(wrong)
    told = capsys.readouterr().out
    if as_json:
        given = json.loads(told)
        assert given["versions"] == {"torch": "2.11"}
        assert {f["status"] for f in given["findings"]} == {"right", *(["wrong"] if wrong else [])}
    else:
        assert "all that can run here is right" in told or wrong
        said = "wrong: triton (cuda, float32, attention (causal)): dq is off by 0.3. To go on without it:"
        assert (said in told) == ("SYMGROUND_DISABLE=triton" in told) == wrong


def test_a_torch_that_does_not_import_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    assert Check().run() == 1
    assert "wrong: Python and torch (cpu): OSError: libcudart.so.12: cannot open" in capsys.readouterr().out


@pytest.mark.slow
def test_this_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the comparisons of dtypes other than float32."""
    monkeypatch.setattr(command, "accuracy_parts", lambda device: [TORCH])
    assert Check(json=True).run() == 0, capsys.readouterr().out
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {f["part"] for f in findings} >= {"driver", "torch", "picked", "time"}
    assert all(f["status"] == "right" for f in findings if f["part"] == "torch")
    assert torch.cuda.is_available() or all(f["said"] == "cpu" for f in findings if f["part"] == "picked")
