"""Many words after one text, against passes over the text with each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import symground as sg
from symground.analysis.probing import encoding
from tests.analysis.subwords import ARCHITECTURES, subword_tokenizer, tiny

WORDS = ["book", "ball", "notebook", "ice cream", "a", "book"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return subword_tokenizer()


@pytest.mark.filterwarnings("ignore:.*cannot go on")
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    ("text", "joint"), [("look at the", None), ("this is the\n", None), ("look", ": "), ("look at the ", None)]
)
@torch.no_grad()
def test_each_word_is_what_follows_the_text(
    name: str, text: str, joint: str | None, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny(name, len(tokenizer))
    found = sg.score(model, text, WORDS, tokenizer, joint=joint, batch_size=2)
    between = {None: "" if text.endswith("\n") else " "}.get(joint, joint)
    text = text.rstrip(" ")
    start = len(tokenizer(text)["input_ids"])
    assert found["target"].tolist() == WORDS
    for word, value, count in zip(WORDS, found["surprisal"], found["tokens"], strict=True):
        ids = tokenizer(f"{text}{between}{word}", return_tensors="pt")["input_ids"]
        log_p = model(ids).logits[0].double().log_softmax(-1)
        expected = -sum(float(log_p[i - 1, ids[0, i]]) for i in range(start, ids.shape[1]))
        assert value == pytest.approx(expected, abs=1e-3)
        assert count == ids.shape[1] - start
    np.testing.assert_allclose(
        found["surprisal"], sg.score(model, text, WORDS, tokenizer, joint=joint)["surprisal"], atol=1e-4
    )


def test_a_model_brings_its_own_tokenizer(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is loaded once, which takes longer than a short question."""
    tiny("Llama", len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = sg.load(tmp_path)
    own, given = (sg.score(model, "look at the", WORDS, which) for which in (None, tokenizer))
    assert own.equals(given)
    monkeypatch.setattr(encoding, "load_tokenizer", lambda *_: pytest.fail("the tokenizer was loaded again"))
    assert sg.score(model, "look at the", WORDS).equals(given)


def test_bad_input(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny("GPT2", len(tokenizer))
    for text, words, joint, message in (
        ("look at the", [], None, "words: expected at least one"),
        ("look at the", "book", None, "words: expected a list of words"),
        ("look at the", [3], None, "words: expected words, got int 3"),
        ("look at the boo", ["k"], "", "words: the tokenizer joins 'k' with the end of the text"),
        ("the " * 70, ["book"], None, "probes: expected at most 64 tokens, the model's positions"),
        ("look", ["book"], 3, "joint: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            sg.score(model, text, words, tokenizer, joint=joint)  # type: ignore[arg-type]
