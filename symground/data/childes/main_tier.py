"""The spoken words of a CHAT main tier, after interpreting each of CHAT's codes and marks.

Source: the CHAT manual (https://talkbank.org/0info/manuals/CHAT.html), chapters on words, utterances, scoped symbols
and CA. ``docs/chat.md`` lists every mark with an example, and a test reads that list.

There are three steps: time bullets and marks within words are removed; codes in brackets act on the items before them;
the words of each remaining item are read. Only :func:`_words_of` decides which kinds of items are speech.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from symground.data.words import UNKNOWN, normalized, words_in

#: Prosody, overlap and other marks of CHAT's CA style; they may occur within a word and do not divide it.
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
_TABLE |= {code: None for code in range(32) if chr(code) not in "\t\n\r\x15"}  # underlining, and other unprintable ones
#: An overlap's number (⌈2); Ϋ and Ἡ, which mark yawning and laughing unless they are letters of a Greek word.
_NUMBERED = re.compile("(?<=[\u2308\u2309\u230a\u230b])[2-9]")
_GREEK = "\u0370-\u03ff\u1f00-\u1fff"
_LETTER_MARKS = re.compile(f"(?<![{_GREEK}])[\u03ab\u1f29]+(?![{_GREEK}])")
#: ↫r-r-r↫rabbit: a repeated segment between two of these marks.
_REPEATED = re.compile("\u21ab[^\\s\u21ab]*\u21ab|\u21ab")
#: (be)cause, o:h, ka^lo: an omitted part, lengthening, a pause between syllables.
_INSIDE = dict.fromkeys(map(ord, "():^"))
_BULLET = re.compile(r'[\x15•](?:%\w+:"[^"\x15]*")?[\d_.\-]+[\x15•]?|\x15[^\x15\s<>\[\]]*\x15|[\x15•]')
#: (.) (..) (1.5) (2:30.5)
_PAUSE = re.compile(r"\([\d.:]+\)")
#: In the linker +<, which may begin an utterance, < begins no group.
_PIECE = re.compile(r"(?<![^\s<])\+<|\[[^\[\]]*\]|[\[\]<>]|[^\s\[\]<>]+")
_RETRACED = frozenset(("/", "//", "///", "/?", "/-", "e"))
#: Unintelligible speech, speech transcribed on a %pho tier only, untranscribed speech; xx and yy are older forms.
UNINTELLIGIBLE = frozenset(("xxx", "yyy", "www", "xx", "yy"))
#: Fillers, fragments and events (&-uh, &+fr, &=laughs); 0, an utterance without speech, and 0word, an omitted word;
#: pauses of older manuals (#long). Punctuation may precede them.
_NO_SPEECH = re.compile(r"[^\w&#]*(?:[&#]|0+(?!\d))")
#: What may follow a word without a space: its special form or part of speech, or an event.
_FORM = re.compile(r"[@$].*|&[-=+~*{}].*")
_LETTER = re.compile(r"\w")

_Item = list[str]


class Unpaired(ValueError):  # noqa: N818 - what is wrong with the line
    """An unpaired bracket."""


def unmarked(text: str) -> str:
    """The text without time bullets, and without the marks of CA style, which do not divide words."""
    if "\x15" in text or "•" in text:
        text = _BULLET.sub(" ", text)
    if not text.isascii():
        text = normalized(text)
        text = _REPEATED.sub("", _LETTER_MARKS.sub("", _NUMBERED.sub("", text)))
    return text.translate(_TABLE) if not text.isprintable() or not text.isascii() else text


def spoken(text: str) -> list[str]:
    """The words of a main tier's text, after its colon; unintelligible ones are [UNK].

    This takes time linear in the length of the text.

    Raises:
        Unpaired: a bracket is unpaired, so that codes cannot be distinguished from speech (says which).
    """
    items = _items(_PAUSE.sub(" ", unmarked(text)))
    return [UNKNOWN if word in UNINTELLIGIBLE else word for item in items for part in item for word in _words_of(part)]


def form_of(part: str) -> str | None:
    """The word of one item between spaces, if it has exactly one."""
    words = list(_words_of(unmarked(part)))
    return words[0] if len(words) == 1 else None


def _items(text: str) -> list[_Item]:
    """The groups <…> and single items of a line, after applying the codes that drop or replace the item before them."""
    if not any(bracket in text for bracket in "[]<>"):
        return [[part] for part in text.split()]
    groups: list[list[_Item]] = [[]]
    nested = 0  # depth of brackets within brackets, which are all code
    for piece in _PIECE.findall(text):
        if nested or piece in ("[", "]"):
            nested += {"[": 1, "]": -1}.get(piece, 0)
            if nested < 0:
                raise Unpaired("] has no [ before it")
        elif piece == "<":
            groups.append([])
        elif piece == ">":
            if len(groups) == 1:
                raise Unpaired("> has no < before it")
            inner = groups.pop()
            groups[-1].append([part for item in inner for part in item])
        elif piece[0] == "[":
            _apply(piece[1:-1], groups[-1])
        elif _LETTER.search(piece):  # codes act on words, not on punctuation in between
            groups[-1].append([piece])
    if nested or len(groups) > 1:
        raise Unpaired(f"{'[' if nested else '<'} has no {']' if nested else '>'} after it")
    return groups[0]


def _apply(code: str, items: list[_Item]) -> None:
    """Apply a code in brackets to the item before it."""
    replacement = code[1:].split() if code.startswith(":") and not code.startswith("::") else []
    if items and (replacement or code.strip() in _RETRACED):
        items[-1] = replacement


def _words_of(part: str) -> Iterable[str]:
    """The words of one item between spaces."""
    if part.isascii() and part.isalpha():
        return (part,)
    if _NO_SPEECH.match(part):
        return ()
    return words_in(_FORM.sub("", part).translate(_INSIDE))
