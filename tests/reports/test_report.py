"""The page of a study, of a run, and of several, from tables made by hand."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import symground as sg
from symground.analysis.results import read_table
from symground.cli import main
from symground.reports.pages import explorer

Made = Callable[..., Path]
QUESTIONS = (
    "Does the word follow from the scene?", "Is it co-occurrence?", "In which layers?", "Which heads?",
    "Do these heads matter?", "Do they detect wrong choices, and does amplifying them help?", "One example at a time",
)  # fmt: skip


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def downloads(page: str) -> dict[str, pd.DataFrame]:
    found = re.findall(r'download="([^"]+)\.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', page)
    return {name: pd.read_csv(io.BytesIO(base64.b64decode(text))) for name, text in found}


def test_every_question_stands_there_with_figures_tables_and_commands(rendered: Path) -> None:
    page = text_of(rendered)
    assert rendered.name == "report.html"
    assert all(question in page for question in QUESTIONS)
    assert "Missing:" not in page
    assert page.count("<figure") == page.count("<figcaption") == page.count('class="made"')
    assert page.count("<svg") >= 12
    assert "symground analyze study --what lens" in page
    assert "6.51" in page  # the study's own table stands beside ours
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(identifiers)) == len(identifiers)


def test_commands_name_the_path_that_was_given(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = made("runs/demo")
    monkeypatch.chdir(tmp_path)
    assert "symground analyze runs/demo --what lens" in text_of(sg.report("runs/demo"))
    assert str(tmp_path) not in text_of(sg.report(study))  # a machine's own paths stay there


def test_the_page_needs_nothing_else(rendered: Path) -> None:
    page = text_of(rendered)
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', re.sub(r"<svg.*?</svg>", "", page, flags=re.S))
    assert "@import" not in page


def test_downloads_are_the_tables(rendered: Path) -> None:
    study = rendered.parent
    found = downloads(text_of(rendered))
    assert {"final", "training", "nouns", "emergence", "mixed", "r2", "r2-peak", "saliency", "lens", "head-counts",
            "stability", "shares", "strongest", "flow-effect", "interventions", "grounds", "monitor",
            "steering"} <= set(found)  # fmt: skip
    pd.testing.assert_frame_equal(found["strongest"], read_table(study, "sweep"), check_dtype=False)
    gain = read_table(study, "gain")
    last = gain[gain["step"] == 400].groupby("target")["gain"].mean()
    (final,) = found["final"].to_dict("records")
    assert final["gain"] == pytest.approx(last.mean())
    assert (final["nouns"], final["seeds"]) == (6, 2)
    (peak,) = found["r2-peak"].to_dict("records")
    assert (peak["peak"], peak["fall"]) == (0.5, 0.0)


def test_same_tables_same_bytes(rendered: Path) -> None:
    page = rendered.read_bytes()
    assert sg.report(rendered.parent).read_bytes() == page


def test_what_is_not_there_is_said_with_its_command(made: Made) -> None:
    study = made(seeds=1)
    for name in ("r2", "lens", "shares", "maps", "interventions", "monitor", "calibration", "steering", "sweep"):
        (study / "results" / f"{name}.parquet").unlink()
    page = text_of(sg.report(study))
    assert all(question in page for question in QUESTIONS[:-1])
    for what in ("surprisal", "lens", "saliency", "interventions", "monitor", "sweep"):
        assert f"symground analyze study --what {what}" in page
    assert "there is one seed only" in page
    assert page.count("Missing:") == 6
    assert 'id="maps"' not in page
    assert 'id="explorer"' not in page
    for name in ("gain", "contexts", "surprisal", "saliency", "heads"):
        (study / "results" / f"{name}.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="no results yet"):
        sg.report(study)


def test_no_table_has_a_raw_name_of_a_column(rendered: Path) -> None:
    headers = re.findall(r'<th scope="col">(.*?)</th>', text_of(rendered))
    assert len(headers) > 100
    assert [name for name in headers if "_" in name] == []


def test_runs_with_different_checkpoints_are_shown_and_said(made: Made) -> None:
    study = made()
    for name in ("contexts", "gain"):
        table = read_table(study, name)
        table = table[(table["seed"] == 0) | (table["step"] != 200)]
        table.to_parquet(study / "results" / f"{name}.parquet")
    page = text_of(sg.report(study))
    assert "emergence steps: gains: the runs of gpt2-4l have not the same checkpoints; seeds [1] lack some" in page
    assert downloads(page)["training"]["seeds"].tolist() == [2, 2, 1, 2]


def test_fewer_nouns_than_were_asked_for(made: Made) -> None:
    study = made()
    config = json.loads((study / "config.json").read_text()) | {"asked": {"nouns": 9, "contexts": 3}}
    (study / "config.json").write_text(json.dumps(config))
    page = text_of(sg.report(study))
    assert "6 nouns × 3 contexts. 3 of the 9 requested nouns are too rare in the corpus" in page
    assert "requested contexts" not in page


def test_results_of_an_older_version(made: Made) -> None:
    study = made()
    r2 = read_table(study, "r2")[["model", "seed", "step", "r2", "slope", "nouns", "mean_gain"]]
    r2.to_parquet(study / "results" / "r2.parquet")
    gain = read_table(study, "gain")
    gain.loc[:, ~gain.columns.str.endswith(("_low", "_high"))].to_parquet(study / "results" / "gain.parquet")
    page = text_of(sg.report(study))
    assert "these results are of an older version" in page
    assert "figure-r2" in page
    (study / "results" / "contexts.parquet").unlink()
    assert "need the gain of each context (symground analyze study --what surprisal --again)" in text_of(
        sg.report(study)
    )


def test_words_of_the_corpus_cannot_break_out(made: Made) -> None:
    evil = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    study = made()
    config = json.loads((study / "config.json").read_text())
    config |= {"contexts": [[f"{evil} {{}}", evil]] * 3, "corpus": [evil], "nouns": [evil, *config["nouns"][1:]]}
    (study / "config.json").write_text(json.dumps(config))
    for table in (study / "results").glob("*.parquet"):
        frame = pd.read_parquet(table)
        for column in ("model", "target", "env", "noun", "region", "detector"):
            if column in frame:
                frame[column] = frame[column].replace({"ball": evil, "gpt2-4l": evil, "other": evil, "flow": evil})
        if "tokens" in frame:
            frame["tokens"] = [[evil, *list(tokens)[1:]] for tokens in frame["tokens"]]
        frame.to_parquet(table)
    page = text_of(sg.report(study))
    assert page.count("<script") == page.count("</script") == 2  # the page's own
    assert "<img" not in page
    inside = re.search(r'<script type="application/json" id="maps">(.*?)</script>', page, re.S)
    assert inside is not None
    assert json.loads(inside[1])["runs"][0]["examples"][0]["tokens"][0] == evil


def test_the_explorers_numbers_are_the_maps(made: Made) -> None:
    study = made(seeds=1)
    page = text_of(sg.report(study))
    inside = re.search(r'id="maps">(.*?)</script>', page, re.S)
    assert inside is not None
    (run,) = json.loads(inside[1])["runs"]
    assert (run["steps"], run["layers"], run["heads"]) == ([0, 100, 200, 400], [0, 1, 2], [2, 2, 2])
    maps = read_table(study, "maps")
    for i, example in enumerate(run["examples"]):
        of = maps[(maps["noun"] == example["noun"]) & (maps["context"] == example["context"]) & (maps["step"] == 200)]
        packed = run["maps"]["200"][i]
        saliency = np.frombuffer(base64.b64decode(packed["saliency"]), np.uint8).reshape(3, 21)
        rows = np.frombuffer(base64.b64decode(packed["rows"]), np.int8).reshape(3, 12)
        for layer in range(3):
            (row,) = of[of["layer"] == layer].to_dict("records")
            exact = np.asarray(row["saliency"], float).reshape(6, 6)[np.tril_indices(6)]
            scale, row_scale = packed["scales"][layer], packed["row_scales"][layer]
            np.testing.assert_allclose(saliency[layer] / 255 * scale, exact, atol=scale * 0.01)
            np.testing.assert_allclose(
                rows[layer] / 127 * row_scale, np.asarray(row["rows"], float), atol=row_scale * 0.01
            )
    assert run["curves"]["dog"]["step"] == [0, 100, 200, 400]


def test_of_too_many_checkpoints_some_are_shown(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "BUDGET", 3000)
    page = text_of(sg.report(made(steps=range(0, 1000, 50))))
    inside = re.search(r'id="maps">(.*?)</script>', page, re.S)
    assert inside is not None
    steps = json.loads(inside[1])["runs"][0]["steps"]
    assert 2 <= len(steps) < 20
    assert (steps[0], steps[-1]) == (0, 950)


def test_a_run_of_a_study(made: Made) -> None:
    study = made(models=("gpt2-4l", "lstm-4l"))
    run = study / "gpt2-4l" / "seed1"
    (run / "checkpoints").mkdir(parents=True)
    path = sg.report(run)
    assert path == run / "report.html"
    found = downloads(text_of(path))
    assert set(found["training"]["model"]) == {"gpt2-4l"}
    assert set(found["strongest"]["seed"]) == {1}


def test_studies_beside_each_other(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = made("a", shift=1.0), made("b", noise=1)
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(a), str(b)]) == 0
    page = text_of(tmp_path / "compare.html")
    found = downloads(page)
    (row,) = found["beside-differences"].to_dict("records")
    assert row["difference"] == pytest.approx(1.0, abs=0.1)
    assert row["p"] < 1e-3
    assert set(found["beside-last"]["study"]) == {"a", "b"}
    assert len(found["beside-interventions"]) == 4
    (b / "results" / "gain.parquet").unlink()
    assert "b: the gain (symground analyze b --what surprisal)" in text_of(sg.report(a, b, out=tmp_path / "c.html"))


def test_one_architecture_against_another(made: Made, tmp_path: Path) -> None:
    page = text_of(sg.report(made("a"), made("b", models=("lstm-4l",)), out=tmp_path / "x.html"))
    (row,) = downloads(page)["beside-differences"].to_dict("records")
    assert row["model"] == "gpt2-4l − lstm-4l"


def test_figures_for_papers(made: Made) -> None:
    study = made()
    sg.report(study, figures=True)
    names = {path.name for path in (study / "figures").iterdir()}
    assert {"surprisal.png", "surprisal.pdf", "lens.png", "steering.pdf", "emergence.pdf"} <= names
    assert (study / "figures" / "gain.png").read_bytes().startswith(b"\x89PNG")
    assert (study / "figures" / "gain.pdf").read_bytes().startswith(b"%PDF")


def test_age_of_acquisition(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ages = tmp_path / "children.csv"
    words = ["car", "shoe", "cup", "book", "dog", "ball"]  # the later, the earlier it emerges here
    lines = [f"{word},{0.1 + i / 20},{0.5 + i / 20}" for i, word in enumerate(words[::-1])]
    ages.write_text("definition,16,24\n" + "\n".join(lines))
    study = made()
    assert main(["report", str(study), "--acquisition", str(ages)]) == 0
    (row,) = downloads(text_of(study / "report.html"))["acquisition"].to_dict("records")
    assert row["correlation"] > 0.9
    assert (row["nouns"], row["never emerged"]) == (6, 0)
    ages.write_text("word,16\nball,0.2")
    assert main(["report", str(study), "--acquisition", str(ages)]) == 1
    assert "expected the columns 'definition'" in capsys.readouterr().err
