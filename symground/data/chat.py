"""CHAT transcripts to the study's ENV/LAN sequence.

Parsing is `rustling`'s. By hand, because it has no such setting: the order of a turn's events (before, during,
utterance, after), unintelligible words (xxx, yyy, www) kept as [UNK] where rustling drops them, and reading from
archives file by file without unpacking them.
"""

from __future__ import annotations

import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from symground.data.corpus import CorpusBuilder
from symground.data.words import UNKNOWN, env_tokens, lan_tokens, speaker
from symground.optional import require

_TIMING = re.compile(r"<\s*(bef|dur|aft)\b[^>]*>")
_OTHER_MARKS = re.compile(r"<[^>]*>|\[[^\]]*\]|\x15[^\x15]*\x15")
_UNINTELLIGIBLE = re.compile(r"\b(?:xxx|yyy|www)\b")
_PLACEHOLDER = "unintelligibleword"
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class ChatSettings:
    """How transcripts become sequences."""

    env_tiers: tuple[str, ...] = ("act", "sit", "gpx")
    """Dependent tiers that are ENV, in the order in which a turn gives them."""
    min_env_tiers: int = 1
    """Transcripts with fewer such tiers are left out."""
    fold_case: bool = False
    """Make all words lower-case (the study keeps case)."""


def add_transcripts(builder: CorpusBuilder, paths: Iterable[str | Path], settings: ChatSettings) -> None:
    """Add every transcript under ``paths`` (.cha files, folders or archives of them), a document each.

    A transcript that cannot be read is set aside, and named with the reason in ``builder.statistics``.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a path that is neither a transcript, a folder nor an archive, or no transcript in any of them.
    """
    statistics: dict[str, Any] = {"files": 0, "files_kept": 0, "utterances": 0, "skipped": [], **asdict(settings)}
    for name, content in transcripts(paths):
        statistics["files"] += 1
        try:
            turns, tiers = parse(content.decode("utf-8-sig"), settings)
        except Exception as error:  # rustling's own error types are not public
            statistics["skipped"].append({"file": name, "reason": f"{type(error).__name__}: {error}"})
            continue
        if tiers >= settings.min_env_tiers:
            builder.add(turns)
            statistics["files_kept"] += 1
            statistics["utterances"] += len(turns)
    builder.statistics["chat"] = statistics
    if not statistics["files"]:
        raise ValueError(f"paths: no .cha file in {', '.join(map(str, paths))}")
    if not statistics["files_kept"]:
        skipped = statistics["skipped"]
        reason = f"; {len(skipped)} could not be read, the first: {skipped[0]['reason']}" if skipped else ""
        raise ValueError(
            f"paths: none of {statistics['files']} transcripts has {settings.min_env_tiers} or more of the tiers "
            f"{', '.join('%' + t for t in settings.env_tiers)}{reason}"
        )


def transcripts(paths: Iterable[str | Path]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every .cha file, one at a time; folders in sorted order, archives in their own."""
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"paths: {path} does not exist")
        if path.is_dir():
            for file in sorted(path.rglob("*.cha")):
                yield str(file.relative_to(path)), file.read_bytes()
        elif path.name.endswith(".cha"):
            yield path.name, path.read_bytes()
        elif path.name.endswith((".zip", *_TAR)):
            try:
                yield from _archived(path)
            except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
                raise ValueError(f"paths: {path} is damaged or not an archive ({error})") from error
        else:
            raise ValueError(f"paths: expected a folder, a .cha file, a .zip or a .tar.* archive; got {path}")


def _archived(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(n for n in archive.namelist() if n.endswith(".cha")):
                yield name, archive.read(name)
        return
    with tarfile.open(path, "r|*") as stream:
        for member in stream:
            content = stream.extractfile(member) if member.isreg() and member.name.endswith(".cha") else None
            if content is not None:
                yield member.name, content.read()


def parse(text: str, settings: ChatSettings) -> tuple[list[list[str]], int]:
    """The turns of one transcript, each a list of tokens, and how many ENV tiers it has."""
    chat = require("rustling.chat", "CHAT transcripts")
    content = "\n".join(_kept_lines(text, settings.env_tiers))
    turns, tiers = [], 0
    for utterance in chat.CHAT.from_strs([content], strict=False).utterances():
        if utterance.participant is None:  # a header in mid-file
            continue
        env_texts = [utterance.tiers[f"%{t}"] for t in settings.env_tiers if f"%{t}" in (utterance.tiers or {})]
        tiers += len(env_texts)
        words = " ".join(token.word.partition("@")[0] for token in utterance.tokens or ())
        turn = turn_tokens(utterance.participant, words, env_texts, settings.fold_case)
        if turn:
            turns.append(turn)
    return turns, tiers


def _kept_lines(text: str, env_tiers: tuple[str, ...]) -> list[str]:
    """The transcript without the dependent tiers that are not ENV, and with one tier of each name per utterance.

    rustling empties an utterance whose %mor tier does not align with its words, so it must not see one; and of two
    tiers of one name it keeps the last only, so they are joined here.
    """
    text = text.replace("\r\n", "\n").replace("’", "'").replace("\n\t", " ")  # a tab continues the line above
    kept: list[str] = []
    place: dict[str, int] = {}  # where the utterance's tiers stand in kept
    for line in text.split("\n"):
        if line.startswith(("*", "%")):
            line = _UNINTELLIGIBLE.sub(_PLACEHOLDER, line)
        tier, _, rest = line.partition(":")
        if line.startswith("*"):
            place = {}
        elif line.startswith("%"):
            if tier[1:] not in env_tiers:
                continue
            if tier in place:
                kept[place[tier]] += f" {rest.strip()}"
                continue
            place[tier] = len(kept)
        kept.append(line)
    return kept


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
