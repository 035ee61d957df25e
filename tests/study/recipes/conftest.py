"""The tables of ``symground heads`` on a tiny LLaVA, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.study.recipes.heads_command import Folder, run


@pytest.fixture(scope="session")
def done(llava_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("heads") / "out"
    assert run(llava_folder, out, "--pictures", "2") == 0
    return out
