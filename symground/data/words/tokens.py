"""The tokens of words: ``book:<ENV>`` on an environment tier, ``book:<LAN>`` in speech.

These are different entries of the vocabulary, so a link between them can only be learnt.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

UNKNOWN, PADDING = "[UNK]", "[PAD]"

#: A run of word characters with at most one inner apostrophe; punctuation is dropped (arXiv 2510.13796).
WORD = re.compile(r"\w+(?:'\w+)?")
#: Zero-width joiners occur within words of Persian, Hindi and other languages.
_JOINERS = "\u200c\u200d"
#: The typographic apostrophe becomes an apostrophe; a soft hyphen is removed.
_PLAIN = {0x2019: "'", 0xAD: None}


def normalized(text: str) -> str:
    """The text in Unicode's form NFC, with plain apostrophes and without soft hyphens: one spelling for each word."""
    return text if text.isascii() else unicodedata.normalize("NFC", text).translate(_PLAIN)


def words_in(text: str) -> list[str]:
    """The words of a text, each in its normalised form. A letter's combining marks belong to its word."""
    text = normalized(text)
    return _pattern(text).findall(text)


def replace_words(text: str, replacement: Callable[[str], str]) -> str:
    """The normalised text with each of its words replaced."""
    text = normalized(text)
    return _pattern(text).sub(lambda word: replacement(word[0]), text)


def _pattern(text: str) -> re.Pattern[str]:
    if text.isascii():
        return WORD
    marks = {c for c in set(text) if c in _JOINERS or unicodedata.category(c)[0] == "M"}
    return _pattern_with("".join(sorted(marks))) if marks else WORD


@lru_cache(maxsize=1024)
def _pattern_with(marks: str) -> re.Pattern[str]:
    """The pattern of words with these marks, which must be listed because ``re`` has no class of combining marks."""
    inner = rf"[\w{re.escape(marks)}]"
    return re.compile(rf"\w{inner}*(?:'\w{inner}*)?")


def env(word: str) -> str:
    return f"{word}:<ENV>"


def lan(word: str) -> str:
    return f"{word}:<LAN>"


def speaker(code: str) -> str:
    return f"<{code}>"


def env_tokens(text: str) -> list[str]:
    return [env(word) for word in words_in(text)]


def lan_tokens(text: str) -> list[str]:
    return [lan(word) for word in words_in(text)]


def shown(word: str) -> str:
    """The name under which counts list what an image shows; it is no token, since in a sequence an image is patches."""
    return f"{word}:<IMG>"


#: tier → its functions from words to tokens.
TIERS = {"env": (env, env_tokens), "lan": (lan, lan_tokens)}
#: The cue that is not a tier: an image.
IMAGE = "image"


def base_of(token: str) -> str | None:
    """The word of an ENV or LAN token; None for other tokens."""
    word, mark, form = token.rpartition(":")
    return word if mark and form in ("<ENV>", "<LAN>") else None


def with_base(token: str, word: str) -> str:
    """The token of the same kind for another word."""
    return f"{word}:{token.rpartition(':')[2]}"
