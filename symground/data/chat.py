"""One CHAT transcript to the study's ENV/LAN sequence.

Parsing is `rustling`'s. By hand, because it has no such setting: the order of a turn's events (before, during,
utterance, after); unintelligible words (xxx, yyy, www) kept as [UNK], and inline events, both of which it drops; two
tiers of one name on an utterance, of which it keeps one; and which line of which file is at fault.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from symground.data.words import UNKNOWN, WORD, env_tokens, lan_tokens, speaker
from symground.optional import require

_TIMING = re.compile(r"<\s*(bef|dur|aft)\b[^>]*>")
_OTHER_MARKS = re.compile(r"<[^>]*>|\[[^\]]*\]|\x15[^\x15]*\x15")
_UNINTELLIGIBLE = re.compile(r"\b(?:xxx|yyy|www)\b")
_PLACEHOLDER = "unintelligibleword"
#: &=laughs, [% points], [= a toy], [=! crying]
_INLINE = re.compile(r"&=(\S+)|\[(?:%|=!?)\s+([^\]]*)\]")
_MAIN = re.compile(r"\*[^\s:*]+:")
_DECLARES_UTF8 = re.compile(rb"(?:\xef\xbb\xbf)?@UTF8")


@dataclass(frozen=True)
class ChatSettings:
    """How transcripts become sequences."""

    env_tiers: tuple[str, ...] = ("act", "sit", "gpx")
    """Dependent tiers that are ENV, in the order in which a turn gives them."""
    min_env_tiers: int = 1
    """Transcripts with fewer such tiers are left out."""
    fold_case: bool = False
    """Make all words lower-case (the study keeps case)."""
    inline_events: bool = False
    """Take inline events (&=laughs, [% points], [= a toy], [=! crying]) as ENV; the study drops them."""
    speakers: tuple[str, ...] = ()
    """Only these speakers' turns, by their codes (CHI MOT …); all by default."""
    lemmas: str | None = None
    """Merge the forms of a word: 'mor' by the transcripts' own %mor tiers, or a file of lines 'form TAB lemma'."""

    def __post_init__(self) -> None:
        if self.min_env_tiers < 0:
            raise ValueError(f"min_env_tiers: expected at least 0, got {self.min_env_tiers}")


class Unreadable(ValueError):  # noqa: N818 - what becomes of the file, which is set aside
    """A transcript that is not CHAT; ``line`` is where, from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line, self.reason = line, reason


@dataclass
class Transcript:
    """What one transcript gives."""

    turns: list[list[str]] = field(default_factory=list)
    """Each a list of tokens."""
    main_tiers: int = 0
    """Utterances there are: turns, silent and other_speakers together."""
    silent: int = 0
    """Those of them with no word and no event: pauses, zeros, and events that are dropped."""
    other_speakers: int = 0
    env_tiers: int = 0
    lemmas: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(form, lemma) of words whose %mor tier aligns; empty unless asked for."""


def decode(content: bytes) -> str:
    """Text of a transcript: UTF-8, with or without a byte-order mark; Latin-1 where its first line does not say @UTF8.

    Raises:
        Unreadable: it says @UTF8 and is not, or is no text at all.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if _DECLARES_UTF8.match(content):
            line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
            raise Unreadable(line, f"byte 0x{byte:02x} is not UTF-8, which its first line declares") from None
        text = content.decode("latin-1")
    if "\x00" in text:
        raise Unreadable(text.count("\n", 0, text.index("\x00")) + 1, "holds a NUL, so it is no text")
    return text


def is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def parse(text: str, settings: ChatSettings) -> Transcript:
    """Read one transcript.

    Raises:
        Unreadable: it has no @End or a line that is neither header, tier nor continuation, or utterances would be lost.
    """
    found = Transcript()
    kept, inline = _kept_lines(text, settings)
    utterances = _utterances(kept)
    if len(utterances) != len(inline):
        raise Unreadable(1, f"has {len(inline)} utterances, of which the parser finds {len(utterances)}")
    for utterance, events in zip(utterances, inline, strict=True):
        found.main_tiers += 1
        if settings.speakers and utterance.participant not in settings.speakers:
            found.other_speakers += 1
            continue
        env_texts = [utterance.tiers[f"%{t}"] for t in settings.env_tiers if f"%{t}" in (utterance.tiers or {})]
        found.env_tiers += len(env_texts)
        words = " ".join(token.word.partition("@")[0] for token in utterance.tokens or ())
        turn = turn_tokens(utterance.participant, words, [*env_texts, *events], settings.fold_case)
        if turn:
            found.turns.append(turn)
        else:
            found.silent += 1
    if settings.lemmas == "mor":
        found.lemmas = _lemmas(text, settings.fold_case)
    return found


def _utterances(lines: Iterable[str]) -> list[Any]:
    chat = require("rustling.chat", "CHAT transcripts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of each %mor tier that does not align
        parsed = chat.CHAT.from_strs(["\n".join(lines)], strict=False)
        return [u for u in parsed.utterances() if u.participant is not None]  # the others are headers in mid-file


class _Line(NamedTuple):
    number: int
    text: str


def _lines(text: str) -> Iterator[_Line]:
    """Headers and tiers, each with what continues it, and the number of its first line.

    Raises:
        Unreadable: a line that is none of these, or no @End at the end.
    """
    whole: _Line | None = None
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if line.startswith(("\t", " ")) and whole is not None:
            whole = _Line(whole.number, f"{whole.text} {line.strip()}")
        elif line.startswith(("@", "*", "%")):
            if whole is not None:
                yield whole
            whole = _Line(number, line)
            if line.startswith("*") and not _MAIN.match(line):
                raise Unreadable(number, "expected a speaker's code and a colon after *")
        elif line.strip():
            raise Unreadable(number, "is neither a header, a tier nor the continuation of one")
    if whole is None or whole.text.strip() != "@End":
        raise Unreadable(whole.number if whole else 1, "the transcript ends here, without @End")
    yield whole


def _kept_lines(text: str, settings: ChatSettings) -> tuple[list[str], list[list[str]]]:
    """The transcript without the dependent tiers that are not ENV, and with one tier of each name per utterance; and
    the inline events of each utterance, if they are wanted.

    rustling empties an utterance whose %mor tier does not align with its words, so it must not see one; and of two
    tiers of one name it keeps the last only, so they are joined here.
    """
    kept: list[str] = []
    events: list[list[str]] = []
    place: dict[str, int] = {}  # where the utterance's tiers stand in kept
    for _, line in _lines(text.replace("’", "'")):
        if line.startswith(("*", "%")):
            line = _UNINTELLIGIBLE.sub(_PLACEHOLDER, line)
        tier, _, rest = line.partition(":")
        if line.startswith("*"):
            place = {}
            events.append([])
            if settings.inline_events:
                found = (simple.replace("_", " ").replace(":", " ") or noted for simple, noted in _INLINE.findall(rest))
                events[-1] += found
        elif line.startswith("%"):
            if tier[1:] not in settings.env_tiers or not events:
                continue
            if tier in place:
                kept[place[tier]] += f" {rest.strip()}"
                continue
            place[tier] = len(kept)
        kept.append(line)
    return kept, events


def _lemmas(text: str, fold_case: bool) -> Counter[tuple[str, str]]:
    """(form, lemma) of every word whose %mor tier aligns; not of clitics, compounds and derived words."""
    lines = [line for _, line in _lines(text.replace("’", "'")) if line.startswith(("@", "*", "%mor:"))]
    found: Counter[tuple[str, str]] = Counter()
    for utterance in _utterances(lines):
        tokens = utterance.tokens or ()
        for token, after in zip(tokens, [*tokens[1:], None], strict=False):
            clitic = not token.word or (after is not None and not after.word)
            if token.mor and not clitic and not set("+#").intersection(token.mor):
                lemma = re.split(r"[-&=~]", token.mor, maxsplit=1)[0]
                form = token.word.partition("@")[0]
                if WORD.fullmatch(form) and WORD.fullmatch(lemma):
                    found[(form.lower(), lemma.lower()) if fold_case else (form, lemma)] += 1
    return found


def turn_tokens(participant: str, words: str, env_texts: Iterable[str], fold_case: bool = False) -> list[str]:
    """One turn in the study's order: events before, events during, the utterance, events after.

    An event starts with the speaker's token unless it carries a mark of its time (<bef>, <dur>, <aft>), which places
    it and is dropped; unmarked events are during. Other marks (<1w-3w>, [= …]) are dropped.
    """
    fold = str.lower if fold_case else str
    events: dict[str, list[str]] = {"bef": [], "dur": [], "aft": []}
    for text in env_texts:
        unmarked, *marked = _TIMING.split(text)
        for time, clause in [(None, unmarked), *zip(marked[::2], marked[1::2], strict=True)]:
            tokens = _unknown(env_tokens(fold(_OTHER_MARKS.sub(" ", clause))))
            if tokens:
                events[time or "dur"] += tokens if time else [speaker(participant), *tokens]
    said = _unknown(lan_tokens(fold(words)))
    utterance = [speaker(participant), *said] if said else []
    return [*events["bef"], *events["dur"], *utterance, *events["aft"]]


def _unknown(tokens: list[str]) -> list[str]:
    return [UNKNOWN if token.startswith(_PLACEHOLDER) else token for token in tokens]
