"""How a word becomes a token: ``book:<ENV>`` on an environment tier, ``book:<LAN>`` in speech.

The two are different entries of the vocabulary, so a link between them can only be learnt.
"""

from __future__ import annotations

import re

UNKNOWN, PADDING = "[UNK]", "[PAD]"

#: A word with an inner apostrophe, or a run of word characters; punctuation is dropped (arXiv 2510.13796).
WORD = re.compile(r"\b\w+'\w+|\b\w+")


def env(word: str) -> str:
    return f"{word}:<ENV>"


def lan(word: str) -> str:
    return f"{word}:<LAN>"


def speaker(code: str) -> str:
    return f"<{code}>"


def env_tokens(text: str) -> list[str]:
    return [env(word) for word in WORD.findall(text)]


def lan_tokens(text: str) -> list[str]:
    return [lan(word) for word in WORD.findall(text)]


def shown(word: str) -> str:
    """What an image shows, in counts; no token of the vocabulary: in a sequence an image is patches."""
    return f"{word}:<IMG>"


#: What a tier's words become.
TIERS = {"env": (env, env_tokens), "lan": (lan, lan_tokens)}
#: The cue that is no tier: an image.
IMAGE = "image"


def base_of(token: str) -> str | None:
    """The word of an ENV or LAN token; None for every other token."""
    word, mark, form = token.rpartition(":")
    return word if mark and form in ("<ENV>", "<LAN>") else None


def with_base(token: str, word: str) -> str:
    """The token of the same kind for another word."""
    return f"{word}:{token.rpartition(':')[2]}"
