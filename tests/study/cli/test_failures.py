"""The answers of the command line to bad input, damaged files and interruptions."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import torch

import symground as sg
from symground.analysis.probing import scoring
from symground.analysis.results import read_table
from symground.cli import main
from symground.files import checkpoint_steps
from tests.study.cli.tiny_study import TINY, fails

pytestmark = pytest.mark.trains


def test_a_run_that_cannot_be_analysed_stops_no_other(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    shutil.copytree(study, out)
    shutil.rmtree(out / "results")
    empty, damaged = out / "gpt2-4l" / "seed1", out / "gpt2-4l" / "seed2"
    shutil.copytree(out / "gpt2-4l" / "seed0", damaged)
    (empty / "checkpoints").mkdir(parents=True)
    shutil.copy(damaged / "config.json", empty)
    file = damaged / "checkpoints" / "step-00000003" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:700])
    command = ["analyze", str(out), "--what", "surprisal"]
    told = fails(command, capsys)
    assert f"{empty} has no checkpoint yet and is skipped" in told
    assert "symground: 1 of 3 runs could not be analysed, the others were: " in told.splitlines()[-1]
    assert "seed2/checkpoints/step-00000003: damaged" in told.splitlines()[-1]
    gains = read_table(out, "gain")
    found = set(gains[["model", "seed", "step"]].itertuples(index=False, name=None))
    whole = {("gpt2-4l", 0), ("lstm-1l", 0)}
    assert found == {(*run, step) for run in whole for step in (0, 3, 6)} | {("gpt2-4l", 2, 0)}
    shutil.rmtree(damaged)
    assert main(command) == 0
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    for one in (out / "gpt2-4l" / "seed0", out / "lstm-1l"):
        shutil.rmtree(one)
    assert "seed1 has no checkpoint yet; symground train writes checkpoints" in fails(command, capsys)
    with pytest.raises(FileNotFoundError, match="seed1 has no checkpoint yet"):
        sg.load(empty)


def test_where_a_report_goes_is_seen_to_before_the_work(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a" / "b" / "page.html"
    assert main(["report", str(study), "--out", str(file)]) == 0
    assert file.is_file()
    assert "out: expected a file, got the folder" in fails(["report", str(study), "--out", str(tmp_path)], capsys, 2)


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--nonsense" in fails(["run", "generated", "--nonsense"], capsys, 2)
    fails(["fly"], capsys, 2)
    fails([], capsys, 2)
    assert "--steps" in fails(["train", "x", "--steps", "many"], capsys, 2)
    for arguments in (["train", "x", "--checkpoints", "sometimes"], ["run", "generated", "--checkpoints", "sometimes"]):
        message = fails(arguments, capsys, 2)
        assert message.startswith("symground: checkpoints: expected numbers, 'every N' or")
        assert len(message.splitlines()) == 1
    assert "expected one of 'gpt2-4l'" in fails(["train", "x", "--model", "gpt5"], capsys, 2)
    assert "spans: expected at least one number" in fails(["analyze", "x", "--spans"], capsys, 2)
    assert "CORPUS: expected" in fails(["run"], capsys, 2)


def test_every_other_failure_is_one_line_and_exits_with_1(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def one_line(arguments: list[str], *parts: str) -> None:
        message = fails(arguments, capsys)
        assert message.startswith("symground: ")
        assert len(message.splitlines()) == 1
        for part in parts:
            assert part in message

    (tmp_path / "empty").mkdir()
    out = ["--out", str(tmp_path / "out")]
    one_line(["run", str(tmp_path / "empty"), *out], "no .cha file")
    one_line(["run", str(tmp_path / "nowhere"), *out], "does not exist")
    assert not (tmp_path / "out").exists()
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    one_line(["run", str(tmp_path / "bad.zip"), *out], "bad.zip is damaged or not an archive")
    (tmp_path / "bad.tar.xz").write_bytes(b"nothing")
    one_line(["run", str(tmp_path / "bad.tar.xz"), *out], "bad.tar.xz is damaged or not an archive")
    (tmp_path / "a.cha").write_text("@Begin\n*MOT:\tlook .\n%act:\tsits\n@End\n")
    one_line(["run", str(tmp_path / "a.cha"), *out], "expected two that occur at least 100 times", "--min-noun-count")
    one_line(["analyze", str(tmp_path / "empty")], "neither a study nor a run")
    one_line(["report", str(tmp_path / "empty")], "is not a study")
    one_line(["train", str(tmp_path / "empty")], "is not a corpus folder")
    one_line(["analyze", str(study / "gpt2-4l" / "seed0"), "--intervene-steps", "5"], "checkpoints at 0, 3, 6; got [5]")
    one_line(
        ["run", "generated", "--out", str(study), *TINY, "--min-noun-count", "7"], "min_noun_count is 100 there, 7 here"
    )
    one_line(["run", "generated", *out, "--contexts", str(tmp_path / "no.json")], "no.json does not exist")


def test_a_truncated_checkpoint_is_named_and_what_was_finished_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    assert main(["data", "generated", "--out", str(out), "--generated.scenes", "600", "--generated.nouns", "4"]) == 0
    assert main(["train", str(out), "--model", "lstm-1l", "--steps", "4", "--checkpoints", "0,2"]) == 0
    file = out / "lstm-1l" / "seed0" / "checkpoints" / "step-00000004" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:700])
    capsys.readouterr()
    assert (
        "step-00000004: damaged, model.safetensors has another checksum"
        in fails(["analyze", str(out)], capsys).splitlines()[-1]
    )
    assert set(read_table(out, "gain")["step"]) == {0, 2}


def test_a_checkpoint_that_gives_nan_is_named_and_scores_are_kept(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    run = copy / "gpt2-4l" / "seed0"
    model = sg.load(run, step=3)
    torch.nn.init.constant_(model.transformer.ln_f.weight, float("nan"))
    changed = run / "checkpoints" / "step-00000003"
    model.save_pretrained(changed)
    assert main(["analyze", str(run), "--what", "surprisal", "--again"]) == 1
    assert "remove its checksums.json if the change was meant" in capsys.readouterr().err
    (changed / "checksums.json").unlink()
    assert main(["analyze", str(run), "--what", "surprisal", "--again"]) == 1
    assert re.search(r"step-00000003 gives NaN for '\w+' after context \d+ \(", capsys.readouterr().err)
    # Earlier checkpoints were analysed again, and the rows of later ones are unchanged.
    for name in ("surprisal", "gain"):
        pd.testing.assert_frame_equal(read_table(copy, name), read_table(study, name), rtol=1e-5)


def test_an_interrupted_scoring_of_a_checkpoint_goes_on(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    shutil.rmtree(copy / "results")
    real, scanned = scoring.scan, []

    def interrupted(model: object, probes: Any, *rest: object) -> Iterator[Any]:
        scanned.append(len(probes.contexts))
        for i, result in enumerate(real(model, probes, *rest)):
            if len(scanned) == 2 and i == 3:
                raise KeyboardInterrupt
            yield result

    command = ["analyze", str(copy / "gpt2-4l" / "seed0"), "--what", "surprisal"]
    with patch.object(scoring, "scan", interrupted):
        assert main(command) == 1
        assert ["step3" in path.name for path in (copy / "results" / "partial").iterdir()] == [True]
        assert main(command) == 0
    assert scanned == [10, 10, 7, 10]  # the second checkpoint goes on from its fourth context
    assert list((copy / "results" / "partial").iterdir()) == []
    whole = read_table(study, "surprisal")
    whole = whole[whole["model"] == "gpt2-4l"].reset_index(drop=True)
    pd.testing.assert_frame_equal(read_table(copy, "surprisal"), whole, rtol=1e-5)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main(["report", str(tmp_path), "--debug"])


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_finished_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "cut"
    arguments = [a if a != "6" else "40" for a in TINY] + ["--models", "lstm-1l", "--checkpoints", "every 1"]
    command = [sys.executable, "-m", "symground.cli", "run", "generated", "--out", str(out), *arguments]
    run = out / "lstm-1l" / "seed0"
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell ignores interrupts of background processes, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: len(checkpoint_steps(run)) >= 2)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in message
    assert message.strip().splitlines()[-1].startswith("symground: interrupted")
    kept = {path: path.read_bytes() for path in run.glob("checkpoints/step-*/model.safetensors")}
    assert main(["run", "generated", "--out", str(out), *arguments]) == 0
    assert checkpoint_steps(run)[-1] == 40
    for path, content in kept.items():
        assert path.read_bytes() == content
