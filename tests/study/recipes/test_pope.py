"""``symground pope``: questions of all strategies, and bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from symground.cli import main
from symground.data import read_questions
from tests.study.recipes.heads_command import Folder, run

SHOWN = {
    "1.jpg": ["person", "dog", "car"], "2.jpg": ["person", "dog", "cup"], "3.jpg": ["cat", "bed", "cup"],
    "4.jpg": ["person", "cat", "bed"],
}  # fmt: skip


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    categories = sorted({name for there in SHOWN.values() for name in there} | {"zebra", "boat"})
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(SHOWN)],
        "annotations": [
            {"image_id": i, "category_id": categories.index(name)}
            for i, there in enumerate(SHOWN.values())
            for name in there
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories)],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path / "instances.json"


def test_pope_writes_questions_of_all_strategies(
    instances: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "pope.json"
    assert main(["pope", str(instances), "--out", str(out), "--images", "3", "--per-image", "4"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "36 questions about 3 images" in printed.err
    found = read_questions(out)
    assert [question.kind for question in found] == ["random"] * 12 + ["popular"] * 12 + ["adversarial"] * 12
    for question in found:
        assert (question.about in SHOWN[question.image]) == (question.answer == "yes")
    images = [{q.image for q in found if q.kind == kind} for kind in ("random", "popular", "adversarial")]
    assert images[0] == images[1] == images[2]
    assert main(["pope", str(instances), "--out", str(out), "--images", "None", "--per-image", "2", "--strategy",
                 "popular"]) == 0  # fmt: skip
    assert len(read_questions(out)) == 8


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ("strategy: expected one of 'random', 'popular', 'adversarial'; got 'likely'", ["--strategy", "likely"]),
        ("per_image: expected an even number, at least 2, got 3", ["--per-image", "3"]),
        ("images: expected 500 of ", []),
    ],
)
def test_pope_refuses_by_name(
    instances: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], message: str, more: list[str]
) -> None:
    assert main(["pope", str(instances), "--out", str(tmp_path / "pope.json"), *more]) == (2 if more else 1)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pope.json").exists()


def test_what_pope_writes_is_what_heads_reads(llava_folder: Folder, instances: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pope.json"
    assert main(["pope", str(instances), "--out", str(pairs), "--images", "4", "--per-image", "2"]) == 0
    for i, name in enumerate(SHOWN):
        shutil.copy(llava_folder / f"{i}.png", tmp_path / name)
    assert run(llava_folder, tmp_path / "out", "--limit", "16", pairs=pairs) == 0
    assert pd.read_parquet(tmp_path / "out" / "pope.parquet")["kind"].tolist() == ["popular", "random", "all"]
