"""Scores that are finished are kept: streaming to a folder, errors, and interruptions."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import symground as sg
from symground.analysis.probing import scoring
from symground.data import Corpus, CorpusBuilder, GeneratedSettings, add_scenes
from symground.models import create


def test_streamed_scores_are_the_same(corpus: Corpus, tmp_path: Path) -> None:
    model = create("gpt2-4l", len(corpus.tokenizer), positions=32).eval()
    probes = sg.probes(corpus.tokenizer)
    with mock.patch.object(scoring, "_FLUSH_ROWS", 3 * 36):
        path = sg.score_to_parquet(model, probes, tmp_path / "scores")
    parts = list(path.glob("part-*.parquet"))
    assert len(parts) == 4
    assert {tuple(pq.read_schema(part).names) for part in parts} == {("context", "env", "target", "surprisal")}
    table = pd.read_parquet(path).sort_values("context", kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(table, sg.score(model, probes), rtol=0, atol=1e-5)


def test_an_interrupted_scoring_goes_on_where_it_stopped(corpus: Corpus, tmp_path: Path) -> None:
    model = create("gpt2-4l", len(corpus.tokenizer), positions=32).eval()
    probes, folder = sg.probes(corpus.tokenizer), tmp_path / "scores"
    real = scoring.scan

    def interrupted(*args: Any) -> Any:
        for i, result in enumerate(real(*args)):
            if i == 4:
                raise KeyboardInterrupt
            yield result

    with mock.patch.object(scoring, "scan", interrupted), pytest.raises(KeyboardInterrupt):
        sg.score_to_parquet(model, probes, folder)
    kept = pd.read_parquet(folder)
    assert kept["context"].nunique() == 4
    with mock.patch.object(scoring, "scan", wraps=real) as scanned:
        sg.score_to_parquet(model, probes, folder)
        sg.score_to_parquet(model, probes, folder)
    assert [len(call.args[1].contexts) for call in scanned.call_args_list] == [6]
    table = pd.read_parquet(folder).sort_values("context", kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(table, sg.score(model, probes), rtol=0, atol=1e-5)


def test_a_folder_of_other_scores_is_refused_and_kept(corpus: Corpus, tmp_path: Path) -> None:
    models_ = [create("gpt2-4l", len(corpus.tokenizer), seed, positions=32).eval() for seed in (0, 1)]
    probes, folder = sg.probes(corpus.tokenizer), tmp_path / "scores"
    sg.score_to_parquet(models_[0], probes, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="holds scores of other model"):
        sg.score_to_parquet(models_[1], probes, folder)
    with pytest.raises(ValueError, match="holds scores of other probes"):
        sg.score_to_parquet(models_[0], probes.take_contexts([0]), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other things than scores"):
        sg.score_to_parquet(models_[0], probes, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_damaged_part_is_named_and_a_missing_one_is_scored_again(corpus: Corpus, tmp_path: Path) -> None:
    model = create("gpt2-4l", len(corpus.tokenizer), positions=32).eval()
    probes, folder = sg.probes(corpus.tokenizer), tmp_path / "scores"
    with mock.patch.object(scoring, "_FLUSH_ROWS", 3 * 36):
        sg.score_to_parquet(model, probes, folder)
    part = folder / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"part-000001\.parquet is damaged .* remove it"):
        sg.score_to_parquet(model, probes, folder)
    part.unlink()
    table = pd.read_parquet(sg.score_to_parquet(model, probes, folder))
    assert table.groupby("context").size().tolist() == [36] * 10


def test_nan_is_named_and_what_came_before_is_kept(corpus: Corpus, tmp_path: Path) -> None:
    """The scores are NaN from the third context on."""
    model = create("gpt2-4l", len(corpus.tokenizer), positions=32).eval()
    model.save_pretrained(tmp_path / "step-00000200")
    model = sg.load(tmp_path / "step-00000200")
    probes = sg.probes(corpus.tokenizer)
    real = scoring.scan

    def broken(*args: Any) -> Any:
        for i, (context, values) in enumerate(real(*args)):
            if i == 3:
                values[2, 1] = np.nan
            yield context, values

    message = r"step-00000200 gives NaN for 'book' after context \d \(.* … .*\) with 'ball'"
    with mock.patch.object(scoring, "scan", broken), pytest.raises(ValueError, match=message):
        sg.score_to_parquet(model, probes, tmp_path / "scores")
    assert pd.read_parquet(tmp_path / "scores")["context"].nunique() == 3


@pytest.mark.slow
def test_interrupt_by_signal_keeps_what_was_scored(tmp_path: Path) -> None:
    """After SIGINT in the middle of a long scoring, the folder is readable and has complete contexts."""
    builder = CorpusBuilder()
    add_scenes(builder, GeneratedSettings(scenes=1000, nouns=6))
    builder.write(tmp_path / "data")
    code = f"""
import sys, torch, symground as sg
from symground.data import Corpus
from symground.models import create
from symground.analysis.probing import scoring as score
torch.set_num_threads(1)
tokenizer = Corpus.load({str(tmp_path / "data")!r}).tokenizer
probes = sg.probes(tokenizer)
probes = probes.take_contexts([i % 10 for i in range(20000)])
model = create("gpt2-4l", len(tokenizer), positions=32).eval()
score._FLUSH_ROWS = 360
print("ready", flush=True)
sg.score_to_parquet(model, probes, {str(tmp_path / "scores")!r})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Interrupts are ignored in tests that run in the background, and child processes inherit this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    folder = tmp_path / "scores"
    while process.poll() is None and len(list(folder.glob("part-*"))) < 2:
        pass
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in error
    sizes = pd.read_parquet(folder).groupby("context").size()
    assert len(sizes) >= 20
    assert (sizes == 36).all()
