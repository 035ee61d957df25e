"""``symground trace``: a page of a text and an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import symground as sg
from symground.cli import main
from tests.analysis.subwords import subword_tokenizer, tiny
from tests.reports.test_views import rows_in, values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("model")
    tokenizer = subword_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tiny("Llama", len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def page(folder: Path, out: Path, *options: str) -> Any:
    assert main(["trace", str(folder), "look at the book", *options, "--out", str(out)]) == 0
    return values(out.read_text(encoding="utf-8"))


def test_the_page_is_the_trace_of_the_answer(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = page(folder, tmp_path / "a.html", "--answer", " and ball", "--groups", "what=the book", "who=look")
    captured = capsys.readouterr()
    assert captured.out.strip() == str(tmp_path / "a.html")
    assert "and ball  (" in captured.err
    model, tokenizer = sg.load(folder), sg.load_tokenizer(folder)
    expected = sg.trace(model, prompt="look at the book", answer=" and ball", per_token=True, rows=True)
    (panel,) = given["panels"]
    np.testing.assert_allclose(rows_in(panel), expected.rows[0], atol=np.abs(expected.rows).max().item() / 200)
    assert "".join(panel["tokens"]) == "look at the book and ball"
    words = dict.fromkeys(panel["groups"], "")
    for token, group in zip(panel["tokens"], panel["group"], strict=True):
        if group >= 0:
            words[panel["groups"][group]] += token
    assert {name: word.strip() for name, word in words.items()} == {"what": "the book", "who": "look"}
    assert tokenizer is not None


def test_the_models_own_answer_and_heads_silenced(folder: Path, tmp_path: Path) -> None:
    given = page(
        folder, tmp_path / "a.html", "--max-new-tokens", "4", "--silence", "0.1", "1.3", "--chat", "--system", "x"
    )
    first, second = given["panels"]
    model, tokenizer = sg.load(folder), sg.load_tokenizer(folder)
    turns = [{"role": "system", "content": "x"}, {"role": "user", "content": "look at the book"}]
    ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        text = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)
    span = torch.arange(text.shape[1])[None] >= len(ids)
    for panel, heads in ((first, []), (second, [(0, 1), (1, 3)])):
        with sg.ablate(model, heads):
            expected = sg.trace(model, text, span=span, per_token=True, rows=True).rows[0].values
        np.testing.assert_allclose(rows_in(panel), expected, atol=np.abs(expected).max() / 200)
    assert [panel["name"] for panel in given["panels"]] == ["as it is", "0.1, 1.3 silenced"]


def test_another_text_with_the_same_answer(folder: Path, tmp_path: Path) -> None:
    given = page(folder, tmp_path / "a.html", "--answer", " ball", "--instead", "i love this")
    assert ["".join(panel["tokens"]) for panel in given["panels"]] == ["look at the book ball", "i love this ball"]


@pytest.mark.parametrize("head", ["2.0", "0.4", "9.9"])
def test_heads_that_a_model_lacks_are_named_before_its_weights_are_loaded(
    head: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without weights stands for one whose weights take long."""
    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    arguments = ["trace", str(tmp_path), "look", "--out", str(tmp_path / "x.html"), "--silence"]
    assert main([*arguments, "0.1", head]) == 1
    assert f"silence: expected heads of the layers [0, 1] of the model, got {head}" in capsys.readouterr().err
    assert main([*arguments, "0.1"]) != 0
    assert "silence" not in capsys.readouterr().err


def test_heads_of_a_model_whose_configuration_does_not_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = subword_tokenizer()
    tiny("Mamba2", len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    arguments = ["trace", str(tmp_path), "look", "--answer", " book", "--out", str(tmp_path / "x.html"), "--silence"]
    assert main([*arguments, "1.8"]) == 1
    assert "silence: expected heads of the layers [0, 1] of the model, got 1.8" in capsys.readouterr().err
    assert main([*arguments, "1.7"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--groups", "the book"], "groups: expected NAME=PHRASE, got 'the book'"),
        (["--groups", "a=nothing", "--answer", " x"], "groups['a']: expected a phrase that the prompt has once"),
        (["--silence", "first"], "silence: expected heads as LAYER.HEAD, such as 3.0, got 'first'"),
        (["--silence", "9.0", "--answer", " x"], "silence: expected heads of the layers [0, 1] of the model"),
        (["--silence", "0.1", "--instead", "a"], "silence: expected no --instead"),
        (["--system", "x"], "system: expected --chat too"),
        (["--max-new-tokens", "0"], "max_new_tokens: expected an integer of at least 1"),
        (["--out", "/none/x.html"], "out: expected a file in a folder that exists"),
        (["--device", "tpu9"], "device: "),
        (["--answer", ""], "answer: expected a text with at least one word"),
    ],
)
def test_wrong_options_are_named(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["trace", str(folder), "look at the book", *options]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
