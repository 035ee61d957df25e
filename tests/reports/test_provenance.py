"""The ends of a study's page: the example that explains its terms, and where its numbers come from."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import symground as sg
from symground.files import read_json, write_json
from symground.reports.pages.example import Piece, example_of

Made = Callable[..., Path]


def told(page: str) -> dict[str, str]:
    """Term → its text, of all lists of terms on a page."""
    found = re.findall(r"<dt[^>]*>(.*?)</dt><dd>(.*?)</dd>", page)
    return {term: unescape(re.sub(r"<[^>]*>", "", text)) for term, text in found}


def test_what_the_runs_recorded_and_nothing_else(made: Made) -> None:
    study = made(seeds=2)
    run = study / "gpt2-4l" / "seed0"
    weights = run / "checkpoints" / "step-00000400"
    weights.mkdir(parents=True)
    save_file({"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16)}, weights / "model.safetensors")
    write_json(run / "config.json", {
        "settings": {"steps": 400, "checkpoints": "0,every 100", "model": "gpt2-4l", "seed": 0,
                     "precision": "bfloat16"},
        "hardware": {"device": "Some GPU <80GB>", "threads": 3},
        "versions": {"symground": "9.9", "revision": "abcdef0123456789+", "torch": "8.7", "transformers": "6.5"},
    })  # fmt: skip
    page = sg.report(study).read_text(encoding="utf-8")
    rows = re.search(r'aria-label="Table runs of study">(.*?)</table>', page, re.S)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in rows[1].split("<tr>")[1:]]  # type: ignore[index]
    assert cells[0] == ["gpt2-4l", "0", "22", "Some GPU &lt;80GB&gt;", "3", "bfloat16", "9.9, revision abcdef0123+",
                        "8.7", "6.5"]  # fmt: skip
    assert cells[1] == ["gpt2-4l", "1", *["unknown"] * 7]
    said = told(page)
    assert said["gpt2-4l, seed 0"] == (
        "symground train study --checkpoints '0,every 100' --model gpt2-4l --precision bfloat16 --seed 0 --steps 400"
    )
    assert said["gpt2-4l, seed 1"] == "unknown"
    assert said["corpus"] == "generated; 1,000 tokens"
    assert said["data"].startswith("unknown")
    assert said["page"] == "symground report study"


def test_a_pretrained_models_page_has_its_own_commands(made: Made) -> None:
    study = made("tiny", models=("tiny",), seeds=1, steps=(0,), shift=3.0)
    (study / "data" / "statistics.json").unlink()
    for table in ("r2", "monitor"):
        (study / "results" / f"{table}.parquet").unlink()
    config = {name: value for name, value in read_json(study / "config.json").items() if name != "corpus"}
    write_json(study / "config.json", config | {"pretrained": "/secret/machine/tiny"})
    page = sg.report(study).read_text(encoding="utf-8")
    assert "symground probe tiny --out tiny --what monitor" in page
    assert "symground analyze" not in page
    assert "/secret" not in page
    assert "corpus" not in told(page)
    assert "a word has the same tokens in both" in page


def elsewhere(made: Made, **config: object) -> Path:
    """The folder of a probed model, with more in its config.json."""
    study = made("tiny", models=("tiny",), seeds=1, steps=(0,), shift=3.0)
    (study / "data" / "statistics.json").unlink()
    (study / "results" / "r2.parquet").unlink()
    known = {name: value for name, value in read_json(study / "config.json").items() if name != "corpus"}
    write_json(study / "config.json", known | {"pretrained": "org/tiny", **config})
    return study


def shown(page: str) -> str:
    """The words of a page that are seen, with one space between them."""
    bare = re.sub(r"<(script|style|svg)\b.*?</\1>|<section id=\"explorer\".*?</section>", " ", page, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", bare)).split())


def test_a_pretrained_models_page_does_not_speak_of_training(made: Made) -> None:
    study = elsewhere(made)
    page = sg.report(study).read_text(encoding="utf-8")
    words = shown(page)
    published = re.search(r'<figure id="table-study".*?</figure>', page, re.S)
    assert published is not None
    words = words.replace(shown(published[0]), "")
    found = re.findall(
        r"[^.]*\b(?:checkpoint|emerge|training|trained|seed|step|corpus|co-occurrence)\w*[^.]*", words, re.I
    )
    assert found == []
    assert 'id="cooccurrence"' not in page
    assert not {"table-emergence", "table-training", "figure-emergence"} & set(
        re.findall(r'<figure id="([^"]*)"', page)
    )
    assert "tiny: a scene with the noun makes its word easier to predict: gain " in words
    assert " nats (6 nouns). " in words
    assert "These findings are about the weights of tiny, and not about an architecture." in words
    assert "Missing:" not in page
    (study / "results" / "contexts.parquet").unlink()
    page = shown(sg.report(study).read_text(encoding="utf-8"))
    assert "Missing: mixed-effects models, which need the gain of each context (symground probe org/tiny" in page
    assert "emerge" not in page


def test_a_pretrained_models_page_shows_what_is_known_of_it(made: Made) -> None:
    page = sg.report(elsewhere(made, parameters=1234567, machine="Some <CPU>")).read_text(encoding="utf-8")
    rows = re.search(r'aria-label="Table runs of tiny">(.*?)</table>', page, re.S)
    assert rows is not None
    assert re.findall(r"<th[^>]*>(.*?)</th>", rows[1]) == ["model", "parameters", "machine"]
    assert re.findall(r"<td>(.*?)</td>", rows[1]) == ["org/tiny", "1,234,567", "Some &lt;CPU&gt;"]
    assert "Not recorded: symground, torch, transformers." in page
    assert "unknown" not in shown(page)


def test_a_studys_runs_have_no_column_that_none_recorded(made: Made) -> None:
    page = sg.report(made()).read_text(encoding="utf-8")
    assert "Not recorded: parameters, machine, threads, precision, symground, torch, transformers." in page


def test_commands_of_a_pretrained_models_page_are_the_one_that_was_given(made: Made) -> None:
    given = "symground probe org/tiny --what lens sweep --nouns /home/me/my nouns.txt --limit 7 --again --kinds both"
    given = given.replace("/home/me/my nouns.txt", "'/home/me/my nouns.txt'")
    page = unescape(sg.report(elsewhere(made, command=given)).read_text(encoding="utf-8"))
    again = "symground probe org/tiny --nouns 'my nouns.txt' --limit 7 --kinds both --what"
    for what in ("surprisal", "saliency", "lens", "sweep", "interventions", "monitor"):
        assert f"<code>{again} {what}</code>" in page
    assert "/home/me" not in page
    assert told(page)["tables"] == given.replace("/home/me/", "")
    unrecorded = unescape(sg.report(elsewhere(lambda _, **more: made("other", **more), command=None)).read_text())
    assert "<code>symground probe org/tiny --out other --what lens</code>" in unrecorded


def test_the_example_is_the_studys_own(made: Made) -> None:
    config = {"nouns": ["book", "ball"], "contexts": [["CHI takes {} out", "look at the"]]}
    example = example_of(config)
    assert example is not None
    assert example.matched == [
        Piece("env", "CHI takes "), Piece("env", "book", True), Piece("env", " out"), Piece("lan", " look at the "),
        Piece("lan", "book", True),
    ]  # fmt: skip
    assert [piece.text for piece in example.mismatched if piece.is_noun] == ["ball", "book"]
    spoken = example_of(config | {"spoken": {"book": "animals"}, "contexts": [["sees {}", "a", [], ["A", "B"], "lan"]]})
    assert spoken is not None
    assert [piece.text for piece in spoken.matched if piece.is_noun] == ["book", "animals"]
    assert {piece.kind for piece in spoken.matched} == {"lan"}
    image = example_of(config | {"contexts": [["{}", "look at the", [], ["A", "B"], "image"]]})
    assert image is not None
    assert image.matched[0] == Piece("env", "image of ")
    plain = {
        "pretrained": "org/tiny",
        "contexts": [["sees {}", "says:\n", [["MOT", "lan", "look"]], ["A", "B"], "env"]],
    }
    read = example_of(config | plain)
    assert read is not None
    assert "".join(piece.text for piece in read.matched) == "sees book. look. says:\nbook"
    read = example_of(config | {"pretrained": "org/tiny"})
    assert read is not None
    assert "".join(piece.text for piece in read.mismatched) == "CHI takes ball out. look at the book"
    assert example_of({"nouns": ["one"], "contexts": config["contexts"]}) is None
    page = sg.report(made()).read_text(encoding="utf-8")
    assert '<span class="env"><mark>ball</mark></span><span class="lan"> look at the </span>' in page
