"""Surprisal of running text against passes over one text at a time, and against minicons."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

import symground as sg
from symground.models import create
from tests.analysis.subwords import ARCHITECTURES, subword_tokenizer, tiny

TEXTS = [
    "look at the book", " i  love\n\nthis  book ball notebook ", "naïve “é” 你好, a\tball\n", "a", "the " * 14 + "end.",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return subword_tokenizer()


@torch.no_grad()
def alone(model: PreTrainedModel, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Surprisal and entropy of each token but the first, of a text in a pass of its own."""
    log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    each = -log_p[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return each.numpy(), -(log_p.exp() * log_p).sum(-1)[:-1].numpy()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_token_is_predicted_from_those_before_it(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny(name, len(tokenizer))
    texts = [TEXTS[0], *TEXTS[3:]] if name == "LSTM" else TEXTS
    table = sg.surprisal(model, texts, tokenizer)
    for i, text in enumerate(texts):
        of_text, ids = table[table["text"] == i], tokenizer(text)["input_ids"]
        assert of_text["id"].tolist() == ids
        assert of_text["position"].tolist() == list(range(len(ids)))
        assert np.isnan(of_text[["surprisal", "entropy"]].iloc[0]).all()
        surprisal, entropy = alone(model, ids)
        np.testing.assert_allclose(of_text["surprisal"].iloc[1:], surprisal, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(of_text["entropy"].iloc[1:], entropy, atol=1e-4, rtol=1e-4)
    for batch_size in (1, 2):
        again = sg.surprisal(model, texts, tokenizer, batch_size=batch_size, entropy=False)
        pd.testing.assert_frame_equal(again, table.drop(columns="entropy"), rtol=1e-4)


def test_words_stand_between_spaces(tokenizer: PreTrainedTokenizerFast) -> None:
    """Every token belongs to the word whose characters it spells, and spaces to the word after them."""
    table = sg.surprisal(tiny("GPT2", len(tokenizer)), TEXTS, tokenizer)
    for i, text in enumerate(TEXTS):
        of_text, words = table[table["text"] == i], text.split()
        assert of_text["word"].tolist() == [words[n] for n in of_text["word_number"]]
        assert of_text["word_number"].is_monotonic_increasing
        assert sorted(set(of_text["word_number"])) == list(range(len(words)))
        places = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        for (start, stop), number in zip(places, of_text["word_number"], strict=True):
            inside = [c for c in range(start, stop) if not text[c].isspace()]
            if inside:
                assert spans[number][0] <= inside[0] < spans[number][1]
            else:
                assert spans[number][0] >= stop or number == len(words) - 1
        assert "".join(of_text["token"]) == text


def byte_fallback() -> PreTrainedTokenizerFast:
    """A vocabulary of pieces with "▁" for spaces, which spells what it lacks in bytes, as Llama-2's does."""
    words = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "▁look", "▁a", *"abcdefghijklmnop"]
    tokenizer = Tokenizer(
        models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=0, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def bytes_of(token: str) -> bytes:
    """What a token spells: a byte, pieces with "▁" for spaces, or the letters that stand for bytes."""
    if re.fullmatch("<0x..>", token):
        return bytes([int(token[3:5], 16)])
    plain = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace()]
    letters = {chr(b): b for b in plain} | {
        chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in plain)
    }
    return b"".join(bytes([letters[c]]) if c in letters else c.replace("▁", " ").encode() for c in token)


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
def test_a_character_stands_once_at_the_token_that_completes_it(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """By a decoder of UTF-8 that is given the bytes of one token after another."""
    chosen = tokenizer if kind == "bytes" else byte_fallback()
    rng = np.random.default_rng(0)
    parts = ["look", " a", " ", "👩‍🚀", "你好", "é", "e\u0301", "🇨🇭", "\n", "ball", "𝕏", "ß"]
    texts = ["👩‍🚀", "好 look", *("a" + "".join(rng.choice(parts, 8)) for _ in range(20))]
    table = sg.surprisal(tiny("Rwkv", len(chosen)), texts, chosen)
    for i, text in enumerate(texts):
        of_text, decoder = table[table["text"] == i], codecs.getincrementaldecoder("utf-8")()
        spelled = [decoder.decode(bytes_of(token)) for token in chosen.convert_ids_to_tokens(of_text["id"].tolist())]
        assert of_text["token"].tolist() == spelled
        assert "".join(spelled) == text
        words = of_text.groupby("word_number")
        assert [word.strip() for word in words["token"].sum()] == words["word"].first().tolist() == text.split()


def opened(tokenizer: PreTrainedTokenizerFast, **names: str) -> PreTrainedTokenizerFast:
    """The same tokenizer with special tokens, which it puts around a text if there are two."""
    found = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), **names)
    if len(names) == 2:
        ids = [(token, found.convert_tokens_to_ids(token)) for token in names.values()]
        found.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{ids[0][0]} $A {ids[1][0]}", special_tokens=ids
        )
    return found


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("names", [{"bos_token": "<s>", "eos_token": "</s>"}, {"eos_token": "</s>"}, {}])
def test_the_token_that_opens_a_text(
    bos: bool | None, names: dict[str, str], tokenizer: PreTrainedTokenizerFast
) -> None:
    """With it the first token is predicted too; what opens and closes a text has no row."""
    special = opened(tokenizer, **names)
    model, plain = tiny("Llama", len(special)), tokenizer(TEXTS[0])["input_ids"]
    if bos and not names:
        with pytest.raises(ValueError, match="bos: expected False, since the tokenizer has no token that opens"):
            sg.surprisal(model, TEXTS[0], special, bos=True)
        return
    table = sg.surprisal(model, TEXTS[0], special, bos=bos)
    assert table["id"].tolist() == plain
    if bos or (bos is None and len(names) == 2):
        first = special.convert_tokens_to_ids(names.get("bos_token", "</s>"))
        np.testing.assert_allclose(table["surprisal"], alone(model, [first, *plain])[0], rtol=1e-4)
    else:
        assert np.isnan(table["surprisal"].iloc[0])
        np.testing.assert_allclose(table["surprisal"].iloc[1:], alone(model, plain)[0], rtol=1e-4)


@pytest.mark.parametrize("bos", [None, True, False])
def test_a_text_is_opened_once(bos: bool | None, tokenizer: PreTrainedTokenizerFast) -> None:
    """A text that begins with the token that opens one is read as it stands, whatever would add that token."""
    special = opened(tokenizer, bos_token="<s>", eos_token="</s>")
    model, ids = tiny("Llama", len(special)), special("look at", add_special_tokens=False)["input_ids"]
    table = sg.surprisal(model, "<s>look at", special, bos=bos)
    assert table["id"].tolist() == [special.bos_token_id, *ids]
    np.testing.assert_allclose(table["surprisal"].iloc[1:], alone(model, [special.bos_token_id, *ids])[0], rtol=1e-4)


def test_a_text_may_spell_a_special_token(tokenizer: PreTrainedTokenizerFast) -> None:
    special = opened(tokenizer, bos_token="<s>", eos_token="</s>")
    model = tiny("Llama", len(special))
    table = sg.surprisal(model, "<s>a book</s> the ball", special, bos=False)
    assert "<s>" in table["token"].tolist()
    assert "</s>" in table["token"].tolist()


def test_agrees_with_minicons(tokenizer: PreTrainedTokenizerFast) -> None:
    scorer = pytest.importorskip("minicons.scorer", reason="minicons is not installed: comparison with a peer")
    model, texts = tiny("GPT2", len(tokenizer)), ["look at the book", "i love this ball and the new notebook"]
    peer = scorer.IncrementalLMScorer(model, device="cpu", tokenizer=tokenizer)
    theirs = peer.token_score(texts, surprisal=True, base_two=False)
    ours = sg.surprisal(model, texts, tokenizer)
    for i, of_text in enumerate(theirs):
        found = ours[ours["text"] == i]["surprisal"].tolist()
        np.testing.assert_allclose(found[1:], [value for _, value in of_text][1:], atol=1e-4)


def test_a_model_brings_its_own_tokenizer(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = tiny("Llama", len(tokenizer))
    with pytest.raises(ValueError, match="tokenizer: expected one, since the model was not loaded from a folder"):
        sg.surprisal(model, TEXTS)
    model.save_pretrained(tmp_path)
    loaded = sg.load(tmp_path)
    with pytest.raises(ValueError, match="tokenizer: expected one, since none can be loaded from"):
        sg.surprisal(loaded, TEXTS)
    tokenizer.save_pretrained(tmp_path)
    pd.testing.assert_frame_equal(sg.surprisal(loaded, TEXTS), sg.surprisal(model, TEXTS, tokenizer))


def test_a_studys_model_and_words(corpus: Any) -> None:
    model = create("gpt2-4l", len(corpus.tokenizer)).eval()
    words = [w for w in corpus.tokenizer.get_vocab() if w.endswith("<LAN>")][:5]
    text = " ".join(words)
    table = sg.surprisal(model, text, corpus.tokenizer, bos=False)
    assert table["word"].tolist() == words == table["token"].tolist()


def test_bad_input(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny("GPT2", len(tokenizer))
    for texts, message in (
        ([], r"texts: expected a text or a list of them, got list \[\]|texts: expected a text"),
        (3, "texts: expected a text or a list of them, got int 3"),
        (["a", ""], "texts: expected texts with at least one word, got str '' at 1"),
        (["a", "  "], "texts: expected texts with at least one word"),
        (["a", 5], "texts: expected texts with at least one word, got int 5 at 1"),
        (["a", "the " * 70], r"texts: expected at most 64 tokens, the model's positions, got \d+ in text 1"),
    ):
        with pytest.raises(ValueError, match=message):
            sg.surprisal(model, texts, tokenizer)  # type: ignore[arg-type]
    letters = Tokenizer(models.WordLevel({chr(i): 1000 + i for i in range(97, 123)} | {"?": 0}, unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="tokenizer: id 1098 of text 0 is outside the model's vocabulary"):
        sg.surprisal(model, "a b", PreTrainedTokenizerFast(tokenizer_object=letters))
    with pytest.raises(ValueError, match="tokenizer: expected one of transformers, got str"):
        sg.surprisal(model, "a", "gpt2")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    with pytest.raises(ValueError, match="model: expected a causal one; the tokens of BertForMaskedLM see later ones"):
        sg.surprisal(BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).eval(), "a ball", tokenizer)
    with pytest.raises(ValueError, match=r"model: expected model.eval\(\)"):
        sg.surprisal(model.train(), "a ball", tokenizer)
