"""Converts one CHAT transcript to the study's ENV/LAN sequence.

`symground.data.childes.main_tier` finds the spoken words of a main tier. Here, `rustling` only aligns the %mor tier, if
lemmas are requested.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from symground.data.childes.main_tier import UNINTELLIGIBLE, Unpaired, form_of, spoken, unmarked
from symground.data.words import UNKNOWN, WORD, env_tokens, lan, normalized, speaker
from symground.errors import check_types, integer, require

#: <bef>, <aft>, and written out: <before>, <after>
_TIMING = re.compile(r"<\s*(bef|dur|aft)(?:ore|ing|er)?\b[^<>]*>", re.IGNORECASE)
_OTHER_MARKS = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")
#: Codes ($INI), special forms (woof@o), and times (0:31.5, 12_34) on a tier of events.
_TIER_CODES = re.compile(r"\$(?!\d)\S*|(?<=\S)@[\w:]+|(?<!\w)\d+(?::\d+)+(?:[.,]\d+)?|(?<!\w)\d+_\d+(?!\w)")
#: &=laughs, &{l=laughs, [% points], [%act: points], [= a toy], [=! crying]
_INLINE = re.compile(r"&(?:\{[ln])?=([^\s<>\[\]]+)|\[(?:%(?:(\w+):)?|=!?(?!\?))\s*([^\[\]]*)\]")
#: The depth to which codes within codes are parsed.
_NESTED = 4
_CODE = re.compile(r"\w[\w-]*")
_MAIN = re.compile(r"\*[^\s:*]+:")
_MAIN_TIER = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|[\r\n])\*")
_DECLARES_UTF8 = re.compile(rb"(?:\xef\xbb\xbf)?@UTF8")


@dataclass(frozen=True)
class ChatSettings:
    """How transcripts become sequences."""

    env_tiers: tuple[str, ...] = ("act", "sit", "gpx")
    """Dependent tiers that are ENV, in their order within a turn."""
    min_env_tiers: int = 1
    """Transcripts with fewer such tiers are skipped."""
    fold_case: bool = False
    """Make all words lower-case (the study keeps case)."""
    inline_events: bool = False
    """Take inline events (&=laughs, [% points], [= a toy], [=! crying]) as ENV; the study drops them."""
    speakers: tuple[str, ...] = ()
    """Only these speakers' turns, by their codes (CHI MOT …); default: all."""
    lemmas: str | None = None
    """Merge the forms of a word: 'mor' uses the transcripts' own %mor tiers; else a file of lines 'form TAB lemma'."""

    def __post_init__(self) -> None:
        check_types(self)
        integer("min_env_tiers", self.min_env_tiers, 0)
        for name, such in (("env_tiers", ("act", "sit")), ("speakers", ("CHI", "MOT"))):
            codes = getattr(self, name)
            if not all(map(_CODE.fullmatch, codes)):
                raise ValueError(f"{name}: expected codes without their marks, such as {such}, got {codes!r}")


class Unreadable(ValueError):  # noqa: N818 - what becomes of the file, which is set aside
    """A file that is not a CHAT transcript; ``line`` is the line with the error, counted from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line, self.reason = line, reason


@dataclass
class Transcript:
    """The contents of one transcript."""

    turns: list[list[str]] = field(default_factory=list)
    """Each turn is a list of tokens."""
    main_tiers: int = 0
    """The number of utterances: of turns, silent and other_speakers together."""
    silent: int = 0
    """Utterances with no word and no event: pauses, zeros, and events that are dropped."""
    other_speakers: int = 0
    env_tiers: int = 0
    lemmas: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(form, lemma) of words whose %mor tier aligns; empty unless lemmas are requested."""


def decode(content: bytes) -> str:
    """The text of a transcript: UTF-8, with or without a byte-order mark, or Latin-1 if its first line is not @UTF8.

    Raises:
        Unreadable: the first line is @UTF8 but the text is not UTF-8, or the bytes are not text at all.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if _DECLARES_UTF8.match(content):
            line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
            raise Unreadable(line, f"byte 0x{byte:02x} is not UTF-8, which its first line declares") from None
        text = content.decode("latin-1")
    if "\x00" in text:
        raise Unreadable(text.count("\n", 0, text.index("\x00")) + 1, "contains a NUL character, so it is not text")
    return text


def is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def main_tiers(content: bytes) -> int:
    """The number of main tiers in a transcript's bytes, even if it cannot be read."""
    return len(_MAIN_TIER.findall(content))


def parse(text: str, settings: ChatSettings) -> Transcript:
    """Read one transcript.

    Raises:
        Unreadable: there is no @End; a line is neither header, tier nor continuation; or a main tier has an unpaired
            bracket.
    """
    found = Transcript()
    for utterance in _utterances(text, settings):
        found.main_tiers += 1
        if settings.speakers and utterance.participant not in settings.speakers:
            found.other_speakers += 1
            continue
        env_texts = [" ".join(utterance.tiers[t]) for t in settings.env_tiers if t in utterance.tiers]
        found.env_tiers += len(env_texts)
        events = _inline_events(utterance.main_tier, settings.env_tiers) if settings.inline_events else ()
        try:
            words = spoken(utterance.main_tier)
        except Unpaired as error:
            raise Unreadable(utterance.number, str(error)) from None
        turn = turn_tokens(utterance.participant, words, [*env_texts, *events], settings.fold_case)
        if turn:
            found.turns.append(turn)
        else:
            found.silent += 1
    if settings.lemmas == "mor":
        found.lemmas = _lemmas(text, settings.fold_case)
    return found


class _Line(NamedTuple):
    number: int
    text: str


class _Utterance(NamedTuple):
    number: int
    """The number of its first line."""
    participant: str
    main_tier: str
    tiers: dict[str, list[str]]
    """The name of each ENV tier, without % → its texts."""


def _lines(text: str) -> Iterator[_Line]:
    """Headers and tiers, each with its continuation lines and the number of its first line.

    Raises:
        Unreadable: a line is none of these, or the text does not end with @End.
    """
    first, parts = 1, list[str]()
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if line.startswith(("\t", " ")) and parts:
            parts.append(line.strip())
        elif line.startswith(("@", "*", "%")):
            if parts:
                yield _Line(first, " ".join(parts))
            first, parts = number, [line]
            if line.startswith("*") and not _MAIN.match(line):
                raise Unreadable(number, "expected a speaker's code and a colon after *")
        elif line.strip():
            raise Unreadable(number, "expected a header, a tier or the continuation of one")
    last = _Line(first, " ".join(parts))
    if last.text.strip() != "@End":
        raise Unreadable(last.number, "the transcript ends here, without @End")
    yield last


def _utterances(text: str, settings: ChatSettings) -> Iterator[_Utterance]:
    """Main tiers with the ENV tiers that belong to them."""
    utterance: _Utterance | None = None
    for number, line in _lines(text):
        tier, _, rest = line.partition(":")
        if line.startswith("*"):
            if utterance is not None:
                yield utterance
            utterance = _Utterance(number, tier[1:], rest, {})
        elif line.startswith("%") and utterance is not None and tier[1:] in settings.env_tiers:
            utterance.tiers.setdefault(tier[1:], []).append(rest.strip())
    if utterance is not None:
        yield utterance


def _inline_events(main_tier: str, env_tiers: Iterable[str]) -> Iterator[str]:
    """The texts of events on a main tier; [%TIER: …] only if that tier is ENV."""
    for simple, tier, note in _INLINE.findall(main_tier):
        if simple or not tier or tier in env_tiers:
            yield simple.replace("_", " ").replace(":", " ") or note


def _lemmas(text: str, fold_case: bool) -> Counter[tuple[str, str]]:
    """(form, lemma) of every word whose %mor tier aligns, except clitics, compounds and derived words."""
    lines = [line for _, line in _lines(normalized(text)) if line.startswith(("@", "*", "%mor:"))]
    found: Counter[tuple[str, str]] = Counter()
    for utterance in _aligned(lines):
        tokens = utterance.tokens or ()
        for token, after in zip(tokens, [*tokens[1:], None], strict=False):
            clitic = not token.word or (after is not None and not after.word)
            if token.mor and not clitic and not set("+#").intersection(token.mor):
                lemma = re.split(r"[-&=~]", token.mor, maxsplit=1)[0]
                form = form_of(token.word)
                if form is not None and WORD.fullmatch(lemma):
                    found[(form.lower(), lemma.lower()) if fold_case else (form, lemma)] += 1
    return found


def _aligned(lines: Iterable[str]) -> list[Any]:
    chat = require("rustling.chat", "lemmas of CHAT transcripts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one warning for each %mor tier that does not align
        utterances: list[Any] = chat.CHAT.from_strs(["\n".join(lines)], strict=False, parallel=False).utterances()
    return utterances


def turn_tokens(participant: str, words: Iterable[str], env_texts: Iterable[str], fold_case: bool = False) -> list[str]:
    """One turn in the study's order: events before, events during, the utterance, events after.

    An event begins with the speaker's token, unless it has a mark of its time (<bef>, <dur>, <aft>), which sets its
    position and is dropped. Events without a mark are during. Other marks (<1w-3w>, [= …], $INI, 0:31) are dropped.

    Args:
        participant: the speaker's code.
        words: the spoken words (:func:`symground.data.childes.main_tier.spoken`).
        env_texts: the text of each tier of events.
        fold_case: make the words lower-case.
    """
    fold = str.lower if fold_case else str
    events: dict[str, list[str]] = {"bef": [], "dur": [], "aft": []}
    for text in env_texts:
        unplaced, *placed = _TIMING.split(unmarked(text))
        for time, clause in [(None, unplaced), *zip(placed[::2], placed[1::2], strict=True)]:
            tokens = list(map(_known, env_tokens(fold(_plain(clause)))))
            if tokens:
                events[(time or "dur").lower()] += tokens if time else [speaker(participant), *tokens]
    speech = [word if word == UNKNOWN else lan(fold(word)) for word in words]
    utterance = [speaker(participant), *speech] if speech else []
    return [*events["bef"], *events["dur"], *utterance, *events["aft"]]


def _plain(clause: str) -> str:
    """The text of a tier of events without its codes."""
    if "<" in clause or "[" in clause:
        for _ in range(_NESTED):
            clause = _OTHER_MARKS.sub(" ", clause)
    return _TIER_CODES.sub(" ", clause)


def _known(token: str) -> str:
    return UNKNOWN if token.rpartition(":")[0] in UNINTELLIGIBLE else token
