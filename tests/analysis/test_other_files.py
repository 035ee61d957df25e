"""Files that are not what is asked for: empty, cut short, or of another kind. Each error names the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import symground as sg
from symground.analysis.results import Table, read_table
from tests.reports.conftest import results

#: file → what reads it.
READS: dict[str, Callable[[Path, SimpleNamespace], Any]] = {
    "lens.safetensors": lambda at, _: sg.TunedLens.load(at / "lens.safetensors"),
    "model/model.safetensors": lambda at, _: sg.load(at / "model"),
    "model/config.json": lambda at, _: sg.load(at / "model"),
    "model/tokenizer.json": lambda at, _: sg.load_tokenizer(at / "model"),
    "study/config.json": lambda at, _: sg.report(at / "study"),
    "study/data/statistics.json": lambda at, _: sg.report(at / "study"),
    "study/results/gain.parquet": lambda at, _: sg.report(at / "study"),
    "study/results/contexts.parquet": lambda at, _: Table(at / "study", "contexts"),
    "scores/_scores.json": lambda at, own: sg.score_to_parquet(own.model, own.few, at / "scores"),
    "words.csv": lambda at, _: sg.report(at / "study", acquisition=at / "words.csv"),
    "contexts.json": lambda at, own: sg.probes(own.tokenizer, ["book", "ball"], at / "contexts.json"),
}


@pytest.fixture(scope="module")
def whole(own: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file of ``READS`` as it should be."""
    folder = tmp_path_factory.mktemp("whole")
    own.model.save_pretrained(folder / "model")
    own.tokenizer.save_pretrained(folder / "model")
    sg.TunedLens.fit(own.model, own.ids, steps=1).save(folder / "lens.safetensors")
    results(folder / "study")
    sg.score_to_parquet(own.model, own.few, folder / "scores")
    (folder / "contexts.json").write_text('[{"env": "picks up {}", "lan": "look at the"}]')
    (folder / "words.csv").write_text("definition,16,18\nbook,0.1,0.9\n")
    return folder


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("kind", ["empty", "text", "list", "bytes", "cut"])
def test_a_file_of_another_kind_is_named(
    own: SimpleNamespace, whole: Path, tmp_path: Path, name: str, kind: str
) -> None:
    at = shutil.copytree(whole, tmp_path / "at")
    file = at / name
    content = file.read_bytes()
    others = {"empty": b"", "text": b"some text", "list": b"[1, 2]", "bytes": bytes(range(256)) * 4}
    file.write_bytes(others.get(kind, content[: len(content) // 3]))
    with pytest.raises(ValueError, match=f"{file.parent.name}.*: .*") as refusal:
        READS[name](at, own)
    assert str(file) in str(refusal.value) or str(file.parent) in str(refusal.value)


def test_every_file_is_read_as_it_should_be(own: SimpleNamespace, whole: Path, tmp_path: Path) -> None:
    at = shutil.copytree(whole, tmp_path / "at")
    for name in READS.keys() - {"study/config.json", "study/data/statistics.json", "study/results/gain.parquet"}:
        READS[name](at, own)


def test_whole_files_of_another_use_are_named(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", {"symground": "tuned lens"})
    with pytest.raises(ValueError, match=r"x\.safetensors: expected a tuned lens, got a file that cannot be read"):
        sg.TunedLens.load(tmp_path / "x.safetensors")
    (tmp_path / "results").mkdir()
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "results" / "gain.parquet")
    with pytest.raises(ValueError, match=r"gain\.parquet: expected the columns model, seed, step, got x"):
        read_table(tmp_path, "gain")
