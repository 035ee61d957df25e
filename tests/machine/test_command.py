"""What ``symground check`` prints of what its parts find, on machines that are made up, and on this one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from symground.machine import command
from symground.machine.command import Check
from symground.machine.finding import Finding
from symground.machine.parts import Part
from symground.machine.printed import lines

RIGHT = Finding("torch", "cpu", "right", "", "attention (causal)", "float32", 1e-6, 2e-6)
WRONG = RIGHT._replace(part="triton", device="cuda", status="wrong", said="dq is off by 0.3", error=0.3)
TORCH = Part("torch", "cpu", impl="torch", dtypes=("float32",))


def told(*findings: Finding) -> str:
    return " ".join(" ".join(lines({"torch": "2.11"}, list(findings))).split())


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("wrong", [False, True])
def test_the_command_says_what_is_wrong_and_ends_with_it(
    as_json: bool, wrong: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(asked: Any, *_: Any) -> Any:
        for part in asked:
            if part.what == "torch":
                yield [], {"versions": {"torch is built for": "CUDA 13.0"}}
            elif part.what == "driver":
                yield [Finding("driver", "cuda", "right", "CUDA 13.0")], {"device": "cuda", "gpus": {"cuda:0": "H100"}}
            elif part.what == "loads":
                yield [Finding(part.name, part.device, "right", "")], {}
            elif part.what == "accuracy":
                yield [WRONG._replace(error=math.inf) if wrong and part.name == "triton" else RIGHT], {}
            else:
                yield [Finding(part.what, part.device, "right", "triton", "attention", "bfloat16")], {}

    monkeypatch.setattr(command, "run", run)
    monkeypatch.delenv("SYMGROUND_DISABLE", raising=False)
    assert Check(json=as_json).run() == int(wrong)
    out = capsys.readouterr().out
    if as_json:
        given = json.loads(out, parse_constant=pytest.fail)  # Infinity and NaN are not JSON
        assert given["versions"]["torch is built for"] == "CUDA 13.0"
        assert given["versions"]["cuda:0"] == "H100"
        assert {f["status"] for f in given["findings"]} == {"right", *(["wrong"] if wrong else [])}
        assert {f["error"] for f in given["findings"]} == {1e-6, None, *(["inf"] if wrong else [])}
    else:
        assert "all that can run here is right" in out or wrong
        said = "wrong: triton (cuda, float32, attention (causal)"
        assert (said in out) == ("SYMGROUND_DISABLE=triton" in out) == wrong


@pytest.mark.parametrize("x", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_lacks_are_strings(x: float) -> None:
    found = command._jsonable({"a": [x, (x, 1.5)], "b": {"c": x}, "d": 2, "e": None})
    assert found == {"a": [str(x), [str(x), 1.5]], "b": {"c": str(x)}, "d": 2, "e": None}


@pytest.mark.parametrize("before", ["", "cpu", "cpu, mamba_ssm"])
def test_the_advice_keeps_what_is_switched_off(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYMGROUND_DISABLE", before)
    names = [*filter(None, before.replace(" ", "").split(",")), "triton"]
    assert f"To go on without it: SYMGROUND_DISABLE={','.join(names)}" in told(RIGHT, WRONG)


def test_calls_are_counted_among_those_that_were_to_run() -> None:
    after = [RIGHT._replace(op=f"op {i}", status="untried", error=None) for i in range(3)]
    assert "1 of 5 calls right" in told(RIGHT, RIGHT._replace(op="op", status="wrong", error=None), *after)
    assert "1 of 1 calls right" in told(RIGHT, RIGHT._replace(op="op", status="absent", error=None))
    assert "0 of 1 calls right" in told(RIGHT._replace(status="wrong", error=None, said="RuntimeError"))


def test_a_fault_of_many_calls_is_one_line() -> None:
    wrong = [WRONG._replace(op=f"op {i}", said="CUDA error: x") for i in range(3)]
    assert told(RIGHT, *wrong).count("CUDA error: x") == 1
    assert "wrong: triton (cuda, float32, op 0 and 2 more): CUDA error: x" in told(RIGHT, *wrong)
    assert "3 wrong" in told(RIGHT, *wrong)


def test_where_nothing_was_tried_nothing_is_called_right() -> None:
    off = Finding("torch", "cpu", "absent", "switched off by SYMGROUND_DISABLE")
    assert told(off).endswith("nothing was tried: the lines above say why")
    assert told(off, RIGHT._replace(status="absent", error=None)).endswith("nothing was tried: the lines above say why")
    assert told(off, RIGHT).endswith("all that can run here is right")


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", ["reference", "Triton", "cpu;torch"])
def test_a_wrong_name_of_what_is_switched_off_is_told_once(
    name: str, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYMGROUND_DISABLE", f"cpu,{name}")
    assert Check(json=as_json).run() == 1
    out = capsys.readouterr().out
    assert " ".join(out.split()).count(f"got '{name}'") == 1
    assert torch.__version__ in out
    if not as_json:
        assert "wrong: SYMGROUND_DISABLE: expected names among cpu, extension" in out
        assert "above" not in out


def broken(package: str, fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(fault)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    monkeypatch.syspath_prepend(str(folder))


def test_a_torch_that_does_not_import_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken("torch", "raise OSError('libcudart.so.12: cannot open shared object file')", tmp_path, monkeypatch)
    assert Check().run() == 1
    out = capsys.readouterr().out
    assert "wrong: Python and torch (cpu): OSError: libcudart.so.12: cannot open" in out
    assert torch.__version__ in out
    assert "1 wrong" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "fault", "said"),
    [
        ("triton", "raise RuntimeError('LLVM broke\\nsecond line')", "RuntimeError: LLVM broke"),
        ("flash_attn", "raise ImportError('undefined symbol')", "ImportError: undefined symbol"),
        ("mamba_ssm", "import os; os.abort()", "its process was ended by SIGABRT when it was loaded"),
    ],
)
def test_a_package_that_does_not_import_is_named_and_the_rest_goes_on(
    package: str, fault: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    broken(package, fault, tmp_path, monkeypatch)
    monkeypatch.setattr(command, "accuracy_parts", lambda device: [TORCH])
    assert Check().run() == 1
    captured = capsys.readouterr()
    out = " ".join(captured.out.split())
    assert f"wrong: {package} (cpu): " in out
    assert said in out
    assert f"SYMGROUND_DISABLE={package}" in out
    assert ("transformers may import it too" in out) == (package != "triton")
    assert "46 of 46 calls right" in out
    assert ", does not import" in out
    assert f"loading: {package}, cpu" in captured.err
    assert "comparing: torch, cpu, float32" in captured.err


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("os.abort()", "its process was ended by SIGABRT when it was loaded"),
        ("os._exit(7)", "its process ended early (exit code 7) when it was loaded"),
    ],
)
def test_a_triton_that_ends_torch_is_named(
    fault: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken("triton", f"import os; {fault}", tmp_path, monkeypatch)
    assert Check().run() == 1
    out = " ".join(capsys.readouterr().out.split())
    assert f"wrong: triton (cpu): {said}. torch imports it with its compiler, so it is not enough" in out
    assert "SYMGROUND_DISABLE=triton" not in out  # which would not keep torch from importing it


@pytest.mark.slow
def test_this_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the comparisons of dtypes other than float32; every implementation has its line."""
    monkeypatch.setattr(command, "accuracy_parts", lambda device: [TORCH] if device is None else every(device))
    every = command.accuracy_parts if torch.cuda.is_available() else lambda device: [
        Part(name, "cuda") for name in ("triton", "flash_attn", "flash", "cuda", "mamba_ssm", "causal_conv1d")
    ]  # fmt: skip
    assert Check(json=True).run() == 0, capsys.readouterr().out
    captured = capsys.readouterr()
    assert captured.err == ""
    findings = json.loads(captured.out)["findings"]
    parts = {f["part"] for f in findings}
    assert parts >= {"driver", "torch", "picked", "time", "triton", "flash_attn", "flash", "cuda", "mamba_ssm"}
    assert all(f["status"] == "right" for f in findings if f["part"] == "torch")
    assert torch.cuda.is_available() or all(f["said"] == "cpu" for f in findings if f["part"] == "picked")
