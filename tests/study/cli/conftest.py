"""A tiny study, trained and analysed once."""

from __future__ import annotations

from pathlib import Path

import pytest

from symground.cli import main
from tests.study.cli.tiny_study import TINY


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["run", "generated", "--out", str(out), *TINY]) == 0
    return out
