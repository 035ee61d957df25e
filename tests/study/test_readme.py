"""The README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import symground
from symground.cli import main

README = (Path(symground.__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def test_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--generated.scenes", "600", "--generated.nouns", "4", "--models", "gpt2-4l", "--steps", "8"]
    assert main(["demo", *arguments, "--batch-size", "2", "--draws", "1", "--intervene-contexts", "1"]) == 0
    q = torch.randn(1, 2, 5, 4, requires_grad=True)
    names = {"torch": torch, "B": 1, "T": 5, "S": 5, "q": q, "k": q, "v": q, "loss": lambda out: out.square().sum()}
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace("step=800", "step=8"), names)
    assert names["probe"].grad.shape == (1, 5, 5)  # type: ignore[attr-defined]


def test_options_of_the_readme_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    known = capsys.readouterr().out
    for option in set(re.findall(r"(?<=\s)--[a-z][a-z.-]+", README)) - {"--help"}:
        assert option in known, option
