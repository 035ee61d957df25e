"""``symground heads`` on a tiny LLaVA, for the tests."""

from __future__ import annotations

from pathlib import Path

from symground.cli import main

FEW = ["--draws", "2", "--checked", "8", "--factors", "0", "2", "--threshold", "0.4"]
TABLES = [
    "answers", "calibration", "detectors", "flow", "heads", "interventions", "pope", "stability", "steering",
]  # fmt: skip
Folder = Path


def run(folder: Folder, out: Path, *more: str, pairs: Path | None = None, model: Path | None = None) -> int:
    questions = pairs or folder / "questions.json"
    return main(["heads", str(model or folder / "model"), "--pairs", str(questions), "--out", str(out), *FEW, *more])


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())
