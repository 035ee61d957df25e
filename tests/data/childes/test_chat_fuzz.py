"""Drawn lines of CHAT: nothing crashes, every utterance is counted, and neither code nor mark becomes a word.

``SYMGROUND_CHAT_LINES=100000 python -m pytest tests/data/childes/test_chat_fuzz.py`` is the long form.
"""

from __future__ import annotations

import os
import random
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress

import pytest

from symground.data import ChatSettings
from symground.data.childes.chat import Unreadable, parse
from symground.data.childes.main_tier import spoken
from symground.data.words import UNKNOWN, WORD

LINES = int(os.environ.get("SYMGROUND_CHAT_LINES", "3000"))
#: Speech has no q, and q is the only letter of codes, so each word shows which of them it is from.
SPEECH = (
    "ka",
    "lo",
    "mi",
    "su",
    "te",
    "ni\u0303o",
    "kä",
    "Ka_Lo",
    "ka+lo",
    "ka's",
    "ka’s",
    "(ka)lo",
    "xxx",
    "yyy",
    "www",
)
MARKS = (*":^≠↑↓⇗↗→↘⇘∞≈≋≡∙⌈⌉⌊⌋∆∇⁎⁇°◉▁▔☺♋∬∮§∾↻ˈˌː‹›〔〕Ϋ", "⌈2", "⌉9", "\x02\x01", "\xad", "↫q-q↫")
#: Codes that need no space on either side.
CODES = (
    "[/]", "[//]", "[///]", "[/?]", "[/-]", "[e]", "[x 3]", "[x3]", "[= q]", "[=q]", "[=! q]", "[=? q q]", "[% q]",
    "[%q]", "[%qqq: q]", "[$QQQ]", "[+ qq]", "[- qqq]", "[*]", "[* q]", "[?]", "[!]", "[!!]", "[>]", "[<1]", "[^ q]",
    "[^c]", "[# q]", "[:: q]", "[= q [q] q]", "\x1512_34\x15", "\x15%qqq:\"q q\"_1_2\x15", "(.)", "(..)", "(1.5)",
    "(2:30.5)", "(.5)", "“", "”", "\"", ",", "!", "‡", "„",
)  # fmt: skip
#: Codes that need a space on both sides.
ALONE = (
    "&-q", "&q", "&+q", "&~q", "&*QQQ:q", "&=q", "&=q:q_q", "&{l=q", "&}l=q", "0", "0q", "0*q", "#", "#q", "##1_5",
    "+...", "+/.", "+//?", "+\"/.", "+\"", "+^", "+,", "++", "+<", ".", "?", "\x1556_78", "\x15",
)  # fmt: skip
SUFFIXES = ("", "", "", "@q", "@q:qqq", "$q", "@q$qq", "&=q", "&-q")
TIER = ("<bef>", "<aft>", "<dur>", "<1w-3w>", "<$=1>", "[= q]", "$QQQ", "$QQQ:QQ", "0:31", "14:28:40.5", "12_34")


def word(rng: random.Random, suffixes: Sequence[str] = SUFFIXES) -> str:
    """A word with marks before, within and after it."""
    text = rng.choice(SPEECH)
    if text in ("xxx", "yyy", "www"):
        return text
    letters = re.findall(".\u0303?", text)
    for _ in range(rng.randrange(3)):
        letters.insert(rng.randrange(len(letters) + 1), rng.choice(MARKS))
    return "".join(letters) + rng.choice(suffixes)


def drawn(rng: random.Random, depth: int = 0) -> str:
    parts = []
    for _ in range(rng.randrange(1, 7)):
        kind = rng.random()
        if kind < 0.5:
            parts.append(f" {word(rng)}")
        elif kind < 0.75:
            parts.append(rng.choice((" ", "")) + rng.choice(CODES) + rng.choice((" ", "")))
        elif kind < 0.9 or depth > 2:
            parts.append(f" {rng.choice(ALONE)} ")
        else:
            parts.append(f" <{drawn(rng, depth + 1).strip()}>" + rng.choice(("", " [/]", "[//]", " [: te su]", "[>]")))
    return "".join(parts)


def tier(rng: random.Random) -> str:
    return " ".join(
        word(rng, ("", "@q")) if rng.random() < 0.6 else rng.choice(TIER) for _ in range(rng.randrange(1, 6))
    )


def test_words_of_drawn_lines_are_speech() -> None:
    rng = random.Random(LINES)
    left = LINES
    while left > 0:
        lines = [(drawn(rng), tier(rng) if rng.random() < 0.4 else None) for _ in range(min(50, left))]
        left -= len(lines)
        body = "".join(f"*MOT:\t{said}\n" + ("" if env is None else f"%act:\t{env}\n") for said, env in lines)
        settings = ChatSettings(min_env_tiers=0, speakers=rng.choice([(), ("CHI",)]))
        found = parse(f"@UTF8\n@Begin\n{body}@End\n", settings)
        assert found.main_tiers == len(lines) == len(found.turns) + found.silent + found.other_speakers
        for said, _ in lines:
            for one in spoken(said):
                assert one == UNKNOWN or WORD.fullmatch(one), (one, said)
                assert "q" not in one.lower(), (one, said)
                assert not set(one).intersection("".join(MARKS)), (one, said)
                assert not re.search(r"\d", one), (one, said)
        for turn in found.turns:
            for token in turn:
                one = token.removesuffix(":<ENV>")
                assert not token.endswith(":<ENV>") or not re.search(r"(?i)q$|\d", one), token


@pytest.mark.parametrize("seed", range(3))
def test_drawn_characters_are_read_or_refused(seed: int) -> None:
    """Any characters are read, or refused with their line; and every word occurs in its line."""
    rng = random.Random(seed)
    alphabet = "ka lo'<>[]():^&@$%*+-=/0123.,!?\x15\t↫⌈\u0303“"
    for _ in range(LINES // 3):
        line = "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))
        try:
            words = spoken(line)
            parse(f"@UTF8\n*MOT:\t{line}\n%act:\t{line}\n@End\n", ChatSettings(inline_events=True))
        except (ValueError, Unreadable):
            assert any(bracket in line for bracket in "[]<>")
            continue
        for one in words:
            letters = iter(line)
            assert one == UNKNOWN or all(c in letters for c in unicodedata.normalize("NFD", one)), (one, line)


HOSTILE = ("<", "[", "]", ">", "‹", "<bef", "[= ", "\x15", "\x15x", "•%a:\"", "↫", "(", "&=", "a:", "'", "@", "0", "[[",
    "]]", "<>", ". [/] ", "$", "1:", "_", "a\u0303", "[/]", "ka [: ")  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_is_linear(piece: str) -> None:
    """A hundred thousand characters of one kind: quadratic time would be minutes."""
    line = piece * (100_000 // len(piece))
    for text in (f"*MOT:\t{line}\n", f"*MOT:\tka\n%act:\t{line}\n"):
        with suppress(Unreadable):
            parse(f"@UTF8\n{text}@End\n", ChatSettings(inline_events=True))


def test_many_lines_of_one_tier_are_linear() -> None:
    many = 50_000
    text = "@UTF8\n*MOT:\tka\n" + "\tmi\n" * many + "%act:\tsu\n" * many + "@End\n"
    turn = parse(text, ChatSettings()).turns[0]
    assert len(turn) == 1 + many + 2 + many
