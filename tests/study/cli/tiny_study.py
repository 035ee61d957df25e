"""Options of a tiny study, and commands that fail, for the tests of the command line."""

from __future__ import annotations

import pytest

from symground.cli import main

#: These tests read which tables are written. They need neither many contexts nor a well fitted lens.
FEW = ["--intervene-contexts", "1", "--lens-fit", "2"]


TINY = [
    "--generated.scenes", "600", "--generated.nouns", "4", "--models", "gpt2-4l", "lstm-1l", "--steps", "6",
    "--batch-size", "4", "--length", "24", "--checkpoints", "0,3", "--draws", "2", *FEW,
]  # fmt: skip


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err.strip()
