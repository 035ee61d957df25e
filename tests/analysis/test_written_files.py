"""What writes a file says by the argument's name that it was given a folder, and leaves it alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import symground as sg
from symground.data import Question, write_questions
from tests.tiny import llama


def _view(path: Path) -> Path:
    return sg.view(sg.trace(llama(), torch.tensor([[3, 4, 5]]), torch.tensor([6]), rows=True)).save(path)


def _lens(path: Path) -> Path:
    return sg.TunedLens(torch.zeros(1, 2, 2), torch.zeros(1, 2)).save(path)


def _questions(path: Path) -> Any:
    return write_questions(path, [Question("a.png", "Is it?", "yes")])


@pytest.mark.parametrize("write", [_view, _lens, _questions])
def test_a_folder_is_no_file(write: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"path: expected a file.*, got the folder {tmp_path}"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
