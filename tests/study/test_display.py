"""The display of objects: a few lines with their contents, and escaped HTML in a notebook."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import symground as sg
from symground.analysis.heads.monitoring import Monitored
from symground.data import Corpus, Question

PARTS = {
    "Probes": [
        "10, such as: picks up {} | I love this …",
        "box, book, ball, hand, paper, table",
        "360 surprisals, 36 pairs a context",
        "span",
    ],
    "TunedLens": ["depths 0 to 2, width 4", "0.500, 0.250, 0.125 nats", "0.050, 0.025, 0.012 nats"],
    "Corpus": ["tokens", "documents", "vocabulary"],
    "ImageQuestions": ["2, such as: Is it <b>?", "yes said as 'Yes'", "pictures"],
    "Monitored": ["4, 1 of them wrong", "flow", "AUROC 0.750 [0.500, 0.900]", "entropy", "NaN: all"],
}


@pytest.fixture
def shown(corpus: Corpus, llava_processor: object, llava_folder: Path) -> dict[str, Any]:
    detectors = pd.DataFrame(
        {
            "detector": ["flow", "entropy"], "auroc": [0.75, np.nan], "auroc_low": [0.5, np.nan],
            "auroc_high": [0.9, np.nan], "note": ["", "NaN: all are right"],
        }
    )  # fmt: skip
    examples = pd.DataFrame({"wrong": [True, False, False, False]})
    asked = [Question(str(llava_folder / "0.png"), "Is it <b>?", answer) for answer in ("yes", "no")]
    return {
        "Probes": sg.probes(corpus.tokenizer),
        "TunedLens": sg.TunedLens(torch.zeros(3, 4, 4), torch.zeros(3, 4), ((0.5, 0.25, 0.125), (0.05, 0.025, 0.0124))),
        "Corpus": corpus,
        "ImageQuestions": sg.image_questions(llava_processor, asked),
        "Monitored": Monitored(examples, detectors, pd.DataFrame()),
    }


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.mark.parametrize("name", PARTS)
def test_a_few_lines_and_a_small_table(shown: dict[str, Any], name: str) -> None:
    text = repr(shown[name])
    assert text.splitlines()[0] == name
    assert len(text.splitlines()) <= 8
    assert max(map(len, text.splitlines())) <= 120
    page = _Cells()
    page.feed(shown[name]._repr_html_())
    assert set(page.tags) == {"table", "caption", "tr", "th", "td"}  # what stands in it is escaped
    assert page.tags.count("tr") == len(text.splitlines()) - 1
    for part in PARTS[name]:
        assert part in text
        assert part in page.text


def test_what_is_asked_says_how_much(shown: dict[str, Any]) -> None:
    probes, questions = shown["Probes"], shown["ImageQuestions"]
    tokens = max(len(row.ids) for rows in probes.rows for row in rows) + max(map(len, probes.targets)) - 1
    contexts, pairs = len(probes.contexts), int(probes.pairs.sum())
    for part in (f"{contexts}, such as", f"{contexts * pairs} surprisals, {pairs} pairs", f"{tokens} of the longest"):
        assert f" {part}" in repr(probes)
    longest = max(len(prompt.ids) for prompt in questions.prompts)
    for part in (f"{len(questions.questions)}, such as", f"{longest} of the longest prompt"):
        assert f" {part}" in repr(questions)


def test_a_corpus_says_how_large_it_is(corpus: Corpus) -> None:
    text = repr(corpus)
    for number in (len(corpus.tokens), len(corpus.documents) - 1, len(corpus.tokenizer)):
        assert f" {number:,}" in text
    kept = replace(corpus, statistics={"splits": {"train": len(corpus.documents) - 4}})
    assert ", 3 of them for validation" in repr(kept)


def test_many_of_them_stay_a_few_lines(corpus: Corpus) -> None:
    contexts = [(f"takes {{}} {'from MOT ' * i}", "what's that a") for i in range(40)]
    probes = sg.probes(corpus.tokenizer, contexts=contexts, spoken={"book": "ball"})
    assert len(repr(probes)) < 800
    assert "book as ball" in repr(probes)
    assert "table" in repr(probes)


def test_monitor_says_why_there_is_nothing_to_tell(corpus: Corpus) -> None:
    """If a model always says the same word, some choices are right; with probes of one noun, all or none are."""
    torch.manual_seed(0)
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(corpus.tokenizer), n_positions=32, n_embd=24, n_layer=2, n_head=3)
    model = sg.attach(GPT2LMHeadModel(config).eval())
    probes = sg.probes(corpus.tokenizer).take_contexts([0, 1, 2])
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(1.0)
        model.lm_head.weight[1] = 1e3  # padding, which none of the probes asks for
    found = sg.monitor(model, probes, among="vocabulary")
    assert found.detectors["auroc"].isna().all()
    assert (found.detectors["note"] == found.detectors["note"][0]).all()
    assert found.detectors["note"][0].startswith("NaN: all 18 choices are wrong")
    assert 'among="targets"' in found.detectors["note"][0]
    assert "NaN: all 18 choices are wrong" in repr(found)
    some = sg.monitor(sg.attach(GPT2LMHeadModel(config).eval()), probes)
    told = some.detectors.iloc[0]
    assert (told["note"] == "") == (told[["auroc", "auroc_low"]].notna().all())
    assert np.isnan(told["auroc"]) or f"AUROC {told['auroc']:.3f}" in repr(some)
