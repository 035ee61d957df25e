"""Files of Visual Dialog: a dialogue is a caption and turns of a question with its answer.

Two forms of file are read: VisDial's own v1.0 (questions and answers are indices into pools), with captions inside or
in a COCO captions file; and a plain list of dialogues, each the caption followed by ten "question? answer".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from symground.data.files import files_in, json_field, json_typed, parse_json
from symground.data.words import env_tokens, lan_tokens, speaker, words_in
from symground.errors import check_types, integer

#: The speakers: of the caption, of questions, of answers.
CAPTION, QUESTION, ANSWER = "CAP", "QUE", "ANS"


@dataclass(frozen=True)
class DialogSettings:
    """How dialogues become sequences."""

    captions: str | None = None
    """COCO captions JSON, for dialogues without their own caption; of an image's captions, the first by id is used."""
    rounds: int | None = None
    """Most question-answer turns of a dialogue that are used."""
    images: str | None = None
    """Image set (symground features) whose patches replace the caption; without it captions are ENV."""
    fold_case: bool = True
    """Make all words lower-case, as in VisDial."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.rounds is not None:
            integer("rounds", self.rounds, 1)


class Dialogue(NamedTuple):
    """One dialogue. ``turns``: (question, answer)."""

    image: str
    caption: str
    turns: tuple[tuple[str, str], ...]

    def segments(self, settings: DialogSettings) -> list[list[str]]:
        """The caption, unless an image replaces it, then each question with its answer."""
        fold = str.lower if settings.fold_case else str
        found = [] if settings.images else [[speaker(CAPTION), *env_tokens(fold(self.caption))]]
        for question, answer in self.turns[: settings.rounds]:
            question_tokens, answer_tokens = lan_tokens(fold(question)), lan_tokens(fold(answer))
            found.append([speaker(QUESTION), *question_tokens, speaker(ANSWER), *answer_tokens])
        return found


def dialogues(path: str | Path, captions: Mapping[int, str] | None = None) -> Iterator[Dialogue]:
    """The dialogues of one JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not JSON, has neither form, or a dialogue lacks a field (says which).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"paths: {path} does not exist")
    for number, entry in enumerate(_read_entries(path)):
        try:
            yield dialogue_of(entry, captions or {})
        except ValueError as error:
            raise ValueError(f"paths: {path}#{number}: {error}") from None


def _read_entries(path: str | Path) -> Iterable[Any]:
    try:
        return entries_of(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"paths: {path}: {error}") from None


def readable_dialogues(paths: Sequence[str | Path], captions: Mapping[int, str] | None = None) -> Iterator[Dialogue]:
    """The dialogues under ``paths`` that :func:`add_dialogues` does not set aside, in its order."""
    for _, content in files_in(paths, ".json"):
        try:
            entries = list(entries_of(content))
        except ValueError:
            continue
        for entry in entries:
            with suppress(ValueError):
                yield dialogue_of(entry, captions or {})


def coco_captions(path: str | Path) -> dict[int, str]:
    """Image id → its first caption by annotation id, from a COCO captions file.

    Raises:
        FileNotFoundError, ValueError: the file is missing, is not JSON, or lacks a field (says which).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"captions: {path} does not exist")
    try:
        content = parse_json(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"captions: {path} is {error}") from None
    try:
        found: dict[int, tuple[int, str]] = {}
        for number, entry in enumerate(json_field(content, "annotations", list)):
            place = f"annotations[{number}]"
            image, of_annotation = json_field(entry, "image_id", int, place), json_field(entry, "id", int, place)
            caption = of_annotation, json_field(entry, "caption", str, place)
            found[image] = min(found.get(image, caption), caption, key=lambda of: of[0])
    except ValueError as error:
        raise ValueError(
            f"captions: {path}: {error}; expected COCO's annotations with id, image_id and caption"
        ) from None
    return {image: caption for image, (_, caption) in found.items()}


class _Pooled(NamedTuple):
    """A dialogue of VisDial's own form, with the pools for its indices."""

    entry: Any
    questions: Sequence[Any]
    answers: Sequence[Any]


def entries_of(file: bytes) -> Iterable[Any]:
    """The dialogues of a JSON file, each to be read by :func:`dialogue_of`.

    Raises:
        ValueError: it is not JSON, or has neither form.
    """
    content = parse_json(file)
    if isinstance(content, list):
        return content
    if not isinstance(content, dict) or "data" not in content:
        raise ValueError("expected a list of dialogues, or VisDial's data with dialogs, questions and answers")
    data = json_field(content, "data", dict)
    entries, *pools = (json_field(data, name, list, "data") for name in ("dialogs", "questions", "answers"))
    return [_Pooled(entry, *pools) for entry in entries]


def dialogue_of(entry: Any, captions: Mapping[int, str]) -> Dialogue:
    """One of :func:`entries_of`.

    Raises:
        ValueError: it lacks a field, or has one of another form (says which).
    """
    return _pooled(entry, captions) if isinstance(entry, _Pooled) else _plain(entry)


def _plain(entry: Any) -> Dialogue:
    parts = json_field(entry, "dialog", list)
    if not parts:
        raise ValueError("dialog: expected a caption and turns, got an empty list")
    caption, *turns = (json_typed(part, str, f"dialog[{number}]") for number, part in enumerate(parts))
    split = []
    for turn in turns:
        question, mark, answer = turn.partition("?")
        if not mark:
            raise ValueError(f"has a turn without a question mark: {turn!r}")
        split.append((question, answer))
    return _checked(Dialogue(json_field(entry, "img", str) if "img" in entry else "", caption, tuple(split)))


def _pooled(entry: _Pooled, captions: Mapping[int, str]) -> Dialogue:
    dialogue, questions, answers = entry
    image = json_field(dialogue, "image_id", int)
    caption = json_field(dialogue, "caption", str) if "caption" in dialogue else captions.get(image)
    if caption is None:
        raise ValueError(f"has no caption, and no COCO caption of image {image} was given (--visdial.captions)")
    turns = []
    for number, turn in enumerate(json_field(dialogue, "dialog", list)):
        place = f"dialog[{number}]"
        question = _at(questions, json_field(turn, "question", int, place), "questions")
        if "answer" in turn:  # the last question of a test dialogue has no answer
            turns.append((question, _at(answers, json_field(turn, "answer", int, place), "answers")))
    return _checked(Dialogue(str(image), caption, tuple(turns)))


def _at(pool: Sequence[Any], index: int, name: str) -> str:
    if not 0 <= index < len(pool):
        raise ValueError(f"{name}: expected an index into a pool of {len(pool)}, got {index}")
    found: str = json_typed(pool[index], str, f"data.{name}[{index}]")
    return found


def _checked(dialogue: Dialogue) -> Dialogue:
    if not words_in(dialogue.caption):
        raise ValueError("has a caption without words")
    if not dialogue.turns:
        raise ValueError("has no turns")
    return dialogue
