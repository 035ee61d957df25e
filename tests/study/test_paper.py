"""The study's own testbeds: from a corpus to tables that stand beside the study's figures."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from symground.cli import main
from symground.recipes.paper import RECIPES, PaperSettings, run_paper, sweep_settings
from symground.reports.paper import tables

TRANSCRIPT = "@UTF8\n@Begin\n@Participants:\tCHI Child, MOT Mother\n{}@End\n"
TURN = "*CHI:\tI love this {0} .\n%act:\ttakes {0} from MOT\n*MOT:\twhat's that a {0} .\n%sit:\tpicks up {0}\n"


@pytest.fixture
def transcripts(tmp_path: Path) -> Path:
    """Enough of both forms of three nouns for one of the package's contexts."""
    folder = tmp_path / "transcripts"
    folder.mkdir()
    for i, noun in enumerate(("book", "ball", "dog")):
        (folder / f"{i}.cha").write_text(TRANSCRIPT.format(TURN.format(noun) * 60), encoding="utf-8")
    return folder
