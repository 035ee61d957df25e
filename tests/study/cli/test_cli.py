"""The commands of a study, end to end on a tiny corpus."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import symground as sg
from symground.analysis.results import read_table
from symground.cli import main
from symground.data import Corpus, env, lan
from symground.files import checkpoint_steps
from tests.study.cli.tiny_study import FEW, TINY, fails

pytestmark = pytest.mark.trains


def test_end_to_end_leaves_the_layout_of_a_study(study: Path) -> None:
    assert {"config.json", "tokenizer.json", "report.html", "results", "data", "gpt2-4l", "lstm-1l"} <= {
        path.name for path in study.iterdir()
    }
    run = study / "gpt2-4l" / "seed0"
    assert checkpoint_steps(run) == [0, 3, 6]
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 6
    assert sg.load(run, step=3).config.n_layer == 4


def test_tables_are_tidy(study: Path) -> None:
    columns = {
        "surprisal": ["context", "env", "target", "surprisal"],
        "contexts": ["context", "target", "matched", "mismatched", "gain"],
        "gain": [
            "target", "matched", "mismatched", "gain",
            *(f"{name}_{end}" for name in ("matched", "mismatched", "gain") for end in ("low", "high")),
        ],
        "r2": [
            *(f"{name}{end}" for name in ("r2", "slope") for end in ("", "_low", "_high")), "pmi_r2", "pmi_slope",
            "partial_r2", "partial_r2_low", "partial_r2_high", "pmi_nouns", "nouns", "mean_gain",
        ],
        "saliency": ["layer", "region", "value", "examples"],
        "heads": ["example", "kind", "denominator", "layer", "head", "share"],
        "shares": [
            "kind", "denominator", "layer", "head", "share", "null", "null_95", "selected", "null_selected", "examples",
            "threshold",
        ],
        "maps": ["context", "noun", "target", "surprisal", "tokens", "layer", "saliency", "rows"],
        "lens": ["lens", "depth", "target", "matched", "mismatched", "gain"],
    }  # fmt: skip
    for name, expected in columns.items():
        table = read_table(study, name)
        assert table.columns.tolist() == ["model", "seed", "step", *expected]
        assert set(table["step"]) == {0, 3, 6}
    assert len(read_table(study, "surprisal")) == 2 * 3 * 10 * 4 * 4
    interventions = read_table(study, "interventions")
    assert interventions.columns.tolist()[:12] == [
        "model", "seed", "step", "kind", "denominator", "heads_per_example", "mean_layer", "original", "control",
        "control_sd", "intervened", "p",
    ]  # fmt: skip
    assert len(interventions) == 2 * 2 * 2  # kinds × denominators × spans, last step of the GPT-2 only
    assert "p_holm" not in interventions  # which is over all checkpoints: the report's
    swept = read_table(study, "sweep")
    assert swept.columns.tolist() == ["model", "seed", "step", "layer", "head", "effect", "first_order", "examples"]
    assert len(swept) == 4 * 4
    assert set(swept["step"]) == {6}


def test_running_again_redoes_nothing_and_gives_the_same_report(study: Path) -> None:
    watched = [*study.rglob("*.safetensors"), *study.rglob("*.parquet")]
    before = {path: path.stat().st_mtime_ns for path in watched}
    page = (study / "report.html").read_bytes()
    assert main(["run", "generated", "--out", str(study), *TINY]) == 0
    assert {path: path.stat().st_mtime_ns for path in watched} == before
    assert (study / "report.html").read_bytes() == page


def test_same_seed_same_numbers(study: Path, tmp_path: Path) -> None:
    assert main(["run", "generated", "--out", str(tmp_path / "again"), *TINY]) == 0
    for name in ("surprisal", "gain", "r2", "saliency", "heads", "interventions", "sweep"):
        pd.testing.assert_frame_equal(read_table(study, name), read_table(tmp_path / "again", name))


def test_stage_by_stage_is_the_same(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "staged")
    assert main(["data", "generated", "--out", out, "--generated.scenes", "600", "--generated.nouns", "4"]) == 0
    training = TINY[TINY.index("--steps") : TINY.index("--draws")]
    assert main(["train", out, "--model", "gpt2-4l", "--learning-rate", "2e-3", *training]) == 0
    assert main(["analyze", f"{out}/gpt2-4l/seed0", "--what", "surprisal"]) == 0
    assert main(["report", out]) == 0
    first, second = (read_table(s, "gain") for s in (study, out))
    pd.testing.assert_frame_equal(first[first["model"] == "gpt2-4l"].reset_index(drop=True), second)
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}/report.html"


def test_what_is_there_is_redone_on_request_only(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "s")
    again = ["analyze", str(tmp_path / "s" / "gpt2-4l" / "seed0"), "--draws", "3", *FEW]
    assert main(again) == 0
    assert set(read_table(tmp_path / "s", "interventions")["draws"]) == {2}
    assert main([*again, "--again"]) == 0
    assert set(read_table(tmp_path / "s", "interventions")["draws"]) == {3}
    assert len(read_table(tmp_path / "s", "surprisal")) == len(read_table(study, "surprisal"))


def test_a_run_trained_anew_is_analysed_anew(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    shutil.copytree(study, out)
    before = read_table(out, "gain")
    shutil.rmtree(out / "gpt2-4l")
    other = [*TINY, "--learning-rate", "0.01", "--models", "gpt2-4l"]
    assert main(["run", "generated", "--out", str(out), *other]) == 0
    after = read_table(out, "gain")
    model = before["model"] == "gpt2-4l"
    assert not np.allclose(before[model & (before["step"] == 6)]["gain"], after[model & (after["step"] == 6)]["gain"])
    pd.testing.assert_frame_equal(before[~model], after[after["model"] != "gpt2-4l"])


def test_a_run_can_be_named_from_inside_it(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study / "gpt2-4l" / "seed0")
    assert main(["analyze", ".", "--what", "surprisal"]) == 0


def test_an_empty_result_replaces_what_was_there(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "s")
    assert len(read_table(tmp_path / "s", "heads"))
    again = ["--what", "saliency", "--threshold", "1.0", "--again"]
    assert main(["analyze", str(tmp_path / "s" / "gpt2-4l" / "seed0"), *again]) == 0
    assert (read_table(tmp_path / "s", "heads")["share"] >= 1.0).all()


@pytest.mark.real_data
def test_env_and_lan_counts_of_a_real_run(real_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "real"
    source = str(real_data / "childes" / "sample_raw")
    arguments = ["--steps", "4", "--batch-size", "2", "--length", "32", "--checkpoints", "0", "--draws", "1"]
    assert main(["run", source, "--out", str(out), *arguments, *FEW]) == 0
    config = json.loads((out / "config.json").read_text())
    assert len(config["nouns"]) == 8
    counts = Corpus.load(out / "data", out).counts
    assert all(counts[form(noun)] >= 100 for noun in config["nouns"] for form in (env, lan))
    assert (out / "report.html").is_file()


def test_interventions_as_asked(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(study, tmp_path / "s")
    run = str(tmp_path / "s" / "gpt2-4l" / "seed0")
    options = ["--selection", "example", "held-out", "--mode", "resample", "--positions", "own", "--match", "layer"]
    few = ["--draws", "2", "--intervene-contexts", "2", "--spans", "0", "--threshold", "0.1"]
    assert main(["analyze", run, "--what", "interventions", "--again", *options, *few]) == 0
    table = read_table(tmp_path / "s", "interventions")
    assert table["selection"].tolist() == ["example"] * 4 + ["held-out"] * 4
    assert set(table["mode"]) == {"resample"}
    assert set(table["positions"]) == {"own"}
    assert set(table["match"]) == {"layer"}
    page = sg.report(tmp_path / "s").read_text(encoding="utf-8")
    assert "held-out" in page
    assert "resample" in page
    for option in ("selection", "mode", "positions", "match"):
        assert f"{option}: expected" in fails(["analyze", run, f"--{option}", "other"], capsys, 2)


def test_a_report_of_interventions_that_measured_less(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "s")
    path = tmp_path / "s" / "results" / "interventions.parquet"
    pd.read_parquet(path).iloc[:, :12].assign(span=0, examples=4, draws=2, short=0).to_parquet(path)
    page = sg.report(tmp_path / "s").read_text(encoding="utf-8")
    assert "Do these heads matter?" in page
    assert "do they only matter?" not in page
