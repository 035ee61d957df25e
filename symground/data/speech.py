"""The words that a CHAT main tier says: what becomes of each of CHAT's codes and marks.

After the CHAT manual (https://talkbank.org/0info/manuals/CHAT.html), chapters on words, utterances, scoped symbols and
CA. ``docs/chat.md`` lists every mark with an example, and a test reads that list.

Three steps: time bullets and the marks that stand within words go; codes in brackets act on what stands before them;
what is left of each item is its words. Which kinds of items are speech is decided in :func:`_said` alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from symground.data.words import UNKNOWN, normalized, words_in

#: Prosody, overlap and other marks of CHAT's CA style that may stand within a word, which they do not divide.
_WITHIN = (
    "\u2191\u2193"  # ↑ ↓ shift to high, to low pitch
    "\u21d7\u2197\u2192\u2198\u21d8"  # ⇗ ↗ → ↘ ⇘ contours
    "\u221e\u2248\u224b\u2261"  # ∞ ≈ ≋ ≡ unmarked ending, continuations, uptake
    "\u2219"  # ∙ inhalation
    "\u2308\u2309\u230a\u230b"  # ⌈ ⌉ ⌊ ⌋ overlaps
    "\u2206\u2207"  # ∆ ∇ faster, slower
    "\u204e\u2047"  # ⁎ ⁇ creaky, unsure
    "\u00b0\u25c9"  # ° ◉ softer, louder
    "\u2581\u2594"  # ▁ ▔ low, high pitch
    "\u263a\u264b"  # ☺ ♋ smile voice, breathy voice
    "\u222c\u222e"  # ∬ ∮ whisper, singing
    "\u00a7\u223e\u21bb"  # § ∾ ↻ precise, constriction, pitch reset
    "\u2260"  # ≠ blocked segment
    "\u02c8\u02cc\u02d0"  # ˈ ˌ ː stress, secondary stress, length
    "\u2039\u203a\u3014\u3015"  # ‹ › 〔 〕 phonological groups, sign groups
)
_TABLE: dict[int, str | None] = dict.fromkeys(map(ord, _WITHIN))
_TABLE |= {code: None for code in range(32) if chr(code) not in "\t\n\r\x15"}  # underlining, and others without a print
#: An overlap's number (⌈2); Ϋ and Ἡ, which mark yawning and laughing where they are no letters of a Greek word.
_NUMBERED = re.compile("(?<=[\u2308\u2309\u230a\u230b])[2-9]")
_GREEK = "\u0370-\u03ff\u1f00-\u1fff"
_LETTER_MARKS = re.compile(f"(?<![{_GREEK}])[\u03ab\u1f29]+(?![{_GREEK}])")
#: ↫r-r-r↫rabbit: a repeated segment between two of them.
_REPEATED = re.compile("\u21ab[^\\s\u21ab]*\u21ab|\u21ab")
#: (be)cause, o:h, ka^lo: what was not said, lengthening, a pause between syllables.
_INSIDE = dict.fromkeys(map(ord, "():^"))
_BULLET = re.compile(r'[\x15•](?:%\w+:"[^"\x15]*")?[\d_.\-]+[\x15•]?|\x15[^\x15\s<>\[\]]*\x15|[\x15•]')
#: (.) (..) (1.5) (2:30.5)
_PAUSE = re.compile(r"\([\d.:]+\)")
#: Where +< is the linker that opens an utterance, < opens no group.
_PIECE = re.compile(r"(?<![^\s<])\+<|\[[^\[\]]*\]|[\[\]<>]|[^\s\[\]<>]+")
_RETRACED = frozenset(("/", "//", "///", "/?", "/-", "e"))
#: Unintelligible speech, speech transcribed on a %pho tier alone, speech that was not transcribed; xx and yy are older.
UNINTELLIGIBLE = frozenset(("xxx", "yyy", "www", "xx", "yy"))
#: Fillers, fragments and events (&-uh, &+fr, &=laughs); 0, an utterance without speech, and 0word, a word left out;
#: pauses of the older manuals (#long). Punctuation may stand before them.
_NOT_SAID = re.compile(r"[^\w&#]*(?:[&#]|0+(?!\d))")
#: What follows a word without a space: its special form or part of speech, or an event.
_FORM = re.compile(r"[@$].*|&[-=+~*{}].*")
_LETTER = re.compile(r"\w")

_Item = list[str]


class Unpaired(ValueError):  # noqa: N818 - what is wrong with the line
    """A bracket without its other half."""


def unmarked(text: str) -> str:
    """The text without time bullets and without the marks of CA style, which do not divide the word they stand in."""
    if "\x15" in text or "•" in text:
        text = _BULLET.sub(" ", text)
    if not text.isascii():
        text = normalized(text)
        text = _REPEATED.sub("", _LETTER_MARKS.sub("", _NUMBERED.sub("", text)))
    return text.translate(_TABLE) if not text.isprintable() or not text.isascii() else text


def spoken(text: str) -> list[str]:
    """The words of a main tier, what stands after its colon; unintelligible ones are [UNK].

    The time this takes is linear in the length of the text.

    Raises:
        Unpaired: a bracket without its other half, so that code cannot be told from speech (says which).
    """
    items = _items(_PAUSE.sub(" ", unmarked(text)))
    return [UNKNOWN if word in UNINTELLIGIBLE else word for item in items for part in item for word in _said(part)]


def form_of(part: str) -> str | None:
    """The word of one item between spaces, where it is exactly one."""
    words = list(_said(unmarked(part)))
    return words[0] if len(words) == 1 else None


def _items(text: str) -> list[_Item]:
    """The groups <…> and single items of a line, after the codes that drop or replace the one before them."""
    if not any(bracket in text for bracket in "[]<>"):
        return [[part] for part in text.split()]
    groups: list[list[_Item]] = [[]]
    nested = 0  # brackets within brackets: all of it is code
    for piece in _PIECE.findall(text):
        if nested or piece in ("[", "]"):
            nested += {"[": 1, "]": -1}.get(piece, 0)
            if nested < 0:
                raise Unpaired("] stands without [ before it")
        elif piece == "<":
            groups.append([])
        elif piece == ">":
            if len(groups) == 1:
                raise Unpaired("> stands without < before it")
            inner = groups.pop()
            groups[-1].append([part for item in inner for part in item])
        elif piece[0] == "[":
            _apply(piece[1:-1], groups[-1])
        elif _LETTER.search(piece):  # codes act on words, not on punctuation between
            groups[-1].append([piece])
    if nested or len(groups) > 1:
        raise Unpaired(f"{'[' if nested else '<'} stands without {']' if nested else '>'} after it")
    return groups[0]


def _apply(code: str, items: list[_Item]) -> None:
    """What a code in brackets does to the item before it."""
    replacement = code[1:].split() if code.startswith(":") and not code.startswith("::") else []
    if items and (replacement or code.strip() in _RETRACED):
        items[-1] = replacement


def _said(part: str) -> Iterable[str]:
    """The words of one item between spaces."""
    if part.isascii() and part.isalpha():
        return (part,)
    if _NOT_SAID.match(part):
        return ()
    return words_in(_FORM.sub("", part).translate(_INSIDE))
