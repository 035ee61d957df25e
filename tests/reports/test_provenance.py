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
    assert cells[1] == ["gpt2-4l", "1", *["unknown"] * 4, "unknown, revision unknown", "unknown", "unknown"]
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
    assert "The training corpus of tiny is not here to count in." in page
    assert told(page)["corpus"] == "none"
    assert "a word has the same tokens in both" in page


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
    assert example_of({"nouns": ["one"], "contexts": config["contexts"]}) is None
    page = sg.report(made()).read_text(encoding="utf-8")
    assert '<span class="env"><mark>ball</mark></span><span class="lan"> look at the </span>' in page
