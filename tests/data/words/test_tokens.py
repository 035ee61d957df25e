"""Words of any script: letters with their marks are one word, and one spelling is one word."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symground.data.words import WORD, env_tokens, replace_words, words_in

#: Letters of scripts whose vowels, tones or accents are combining marks, which no composed letter may replace.
SYLLABLES = ("n\u0303i", "ё", "क्षि", "த்தோ", "ก็", "x\u0323\u0302", "שָׁ", "بِّ", "ཀྱི", "e\u0301", "l\u00b7".strip("·"), "할")


@given(st.lists(st.lists(st.sampled_from(SYLLABLES), min_size=1, max_size=4).map("".join), min_size=1, max_size=5))
def test_letters_with_their_marks_are_one_word(words: list[str]) -> None:
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, " , ".join(words))
        assert words_in(text) == [unicodedata.normalize("NFC", word) for word in words]


@given(st.text(st.characters(codec="latin-1")))
def test_without_combining_marks_the_pattern_is_the_studys(text: str) -> None:
    assert words_in(text) == WORD.findall(unicodedata.normalize("NFC", text).replace("\xad", ""))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don’t don't", ["don't", "don't"]),
        ("ka\u00adlo", ["kalo"]),
        ("می‌خواهم क्‍ष", ["می‌خواهم", "क्‍ष"]),
        ("\u0301 ka", ["ka"]),
        ("'ka' lo'", ["ka", "lo"]),
    ],
)
def test_signs_within_words(text: str, words: list[str]) -> None:
    assert words_in(text) == words
    assert env_tokens(text) == [f"{word}:<ENV>" for word in words]
    assert words_in(replace_words(text, lambda word: f"x{word}")) == [f"x{word}" for word in words]
