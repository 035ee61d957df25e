"""Visual Dialog: the caption's words, or the image's patches, are ENV, the turns LAN.

Two forms of file are read: VisDial's own v1.0 (questions and answers by index into pools), with its captions inside or
in a COCO captions file; and a plain list of dialogues, each the caption followed by ten "question? answer".
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from symground.data.builder import CorpusBuilder
from symground.data.files import file_names, files_in
from symground.data.images import ImageSet, image_key
from symground.data.splits import share_of
from symground.data.words import env_tokens, lan_tokens, speaker, words_in
from symground.progress import progress

#: Who speaks: the caption, who asks, who answers.
CAPTION, QUESTION, ANSWER = "CAP", "QUE", "ANS"


@dataclass(frozen=True)
class DialogSettings:
    """How dialogues become sequences."""

    captions: str | None = None
    """COCO captions JSON, for dialogues without a caption of their own; of several the first by id is taken."""
    rounds: int | None = None
    """At most so many question-answer turns of each dialogue."""
    images: str | None = None
    """Image set (symground features) whose patches stand in the caption's place; without it captions are ENV."""
    fold_case: bool = True
    """Make all words lower-case, as VisDial's are."""

    def __post_init__(self) -> None:
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"rounds: expected at least 1, got {self.rounds}")


class Dialogue(NamedTuple):
    """One dialogue. ``turns``: (question, answer)."""

    image: str
    caption: str
    turns: tuple[tuple[str, str], ...]

    def segments(self, settings: DialogSettings) -> list[list[str]]:
        """The caption, where no image stands in its place, then each question with its answer."""
        fold = str.lower if settings.fold_case else str
        found = [] if settings.images else [[speaker(CAPTION), *env_tokens(fold(self.caption))]]
        for question, answer in self.turns[: settings.rounds]:
            asked, said = lan_tokens(fold(question)), lan_tokens(fold(answer))
            found.append([speaker(QUESTION), *asked, speaker(ANSWER), *said])
        return found


def add_dialogues(
    builder: CorpusBuilder, paths: Sequence[str | Path], settings: DialogSettings, *, validation: float = 0.0,
    strict: bool = False, nouns: Collection[str] = (),
) -> None:  # fmt: skip
    """Add every dialogue of the JSON files under ``paths`` (files, folders, archives), a document each.

    A dialogue without a field, or a file of another form, is set aside and named with the reason in
    ``builder.statistics["visdial"]``; a dialogue whose image is not in the image set is counted there. Each file is
    read whole.

    Args:
        builder: takes the documents, named FILE#NUMBER.
        paths: of JSON files.
        settings: how dialogues become sequences.
        validation: the share of dialogues kept from training, chosen by their images.
        strict: raise for the first that cannot be read instead.
        nouns: an image shows those of them that its caption names.

    Raises:
        FileNotFoundError: a path that does not exist, or no image set where one is named.
        ValueError: a path of another kind, no dialogue in any of them; with ``strict``, one that cannot be read.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation: expected a share from 0 to below 1, got {validation}")
    captions = {} if settings.captions is None else coco_captions(settings.captions)
    image_set = None if settings.images is None else ImageSet.load(settings.images)
    numbers = None if image_set is None else image_set.numbers()
    builder.patches = 0 if image_set is None else image_set.patches
    fold, nouns = (str.lower if settings.fold_case else str), set(nouns)
    counts: Counter[str] = Counter()
    skipped: list[dict[str, str]] = []

    def set_aside(file: str, reason: str) -> None:
        if strict:
            raise ValueError(f"paths: {file}: {reason}")
        skipped.append({"file": file, "reason": reason})

    names = file_names(paths, ".json")
    with progress("dialogues", len(names), quick=True) as bar:
        for name, content in files_in(paths, ".json"):
            counts["files"] += 1
            try:
                entries = list(_entries(json.loads(content)))
            except (ValueError, RecursionError) as error:
                counts["files_set_aside"] += 1
                set_aside(name, f"{type(error).__name__}: {error}")
                entries = []
            for number, entry in enumerate(entries):
                counts["dialogues"] += 1
                try:
                    dialogue = _dialogue(entry, captions)
                except ValueError as error:
                    counts["dialogues_set_aside"] += 1
                    set_aside(f"{name}#{number}", str(error))
                    continue
                held = share_of(dialogue.image or f"{name}#{number}") < validation
                group, image, shown = PurePosixPath(name).name, None, set[str]()
                if numbers is not None:
                    image = numbers.get(image_key(dialogue.image))
                    if image is None:
                        counts["dialogues_without_image"] += 1
                        continue
                    shown = nouns.intersection(words_in(fold(dialogue.caption)))
                builder.add(
                    dialogue.segments(settings), f"{name}#{number}", group=group, validation=held, image=image,
                    shown=sorted(shown),
                )  # fmt: skip
                counts["turns"] += len(dialogue.turns[: settings.rounds])
            bar.advance()
    keys = ["files", "files_set_aside", "dialogues", "dialogues_set_aside", "turns"]
    keys += [] if numbers is None else ["dialogues_without_image"]
    builder.statistics["visdial"] = {
        **{key: counts[key] for key in keys}, "skipped": skipped, "settings": asdict(settings),
    }  # fmt: skip
    if not counts["files"]:
        raise ValueError(f"paths: no .json file in {', '.join(map(str, paths))}")
    if counts["dialogues"] == counts["dialogues_set_aside"]:
        raise ValueError(f"paths: no dialogue could be read; the first, {skipped[0]['file']}: {skipped[0]['reason']}")
    if counts["dialogues"] == counts["dialogues_set_aside"] + counts["dialogues_without_image"]:
        raise ValueError(
            f"images: {settings.images} has no image of these dialogues (they go by the number in its name)"
        )


def dialogues(path: str | Path, captions: Mapping[int, str] | None = None) -> Iterator[Dialogue]:
    """The dialogues of one JSON file.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not JSON, of neither form, or a dialogue lacks a field (says which).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"paths: {path} does not exist")
    for number, entry in enumerate(_entries(json.loads(Path(path).read_bytes()))):
        try:
            yield _dialogue(entry, captions or {})
        except ValueError as error:
            raise ValueError(f"paths: {path}#{number}: {error}") from None


def readable_dialogues(paths: Sequence[str | Path], captions: Mapping[int, str] | None = None) -> Iterator[Dialogue]:
    """Those dialogues under ``paths`` that :func:`add_dialogues` does not set aside, in its order."""
    for _, content in files_in(paths, ".json"):
        try:
            entries = list(_entries(json.loads(content)))
        except (ValueError, RecursionError):
            continue
        for entry in entries:
            with suppress(ValueError):
                yield _dialogue(entry, captions or {})


def coco_captions(path: str | Path) -> dict[int, str]:
    """Image id → its first caption by annotation id, from a COCO captions file.

    Raises:
        FileNotFoundError, ValueError: a file that is missing, not JSON or without the fields (says which).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"captions: {path} does not exist")
    try:
        annotations = json.loads(Path(path).read_bytes())["annotations"]
        ordered = sorted(annotations, key=lambda a: a["id"], reverse=True)
        return {int(a["image_id"]): str(a["caption"]) for a in ordered}
    except json.JSONDecodeError as error:
        raise ValueError(f"captions: {path} is not JSON ({error})") from None
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"captions: {path}: expected COCO's annotations with id, image_id and caption; {error!r}"
        ) from None


class _Pooled(NamedTuple):
    """A dialogue of VisDial's own form, with the pools its indices point into."""

    entry: Any
    questions: Sequence[str]
    answers: Sequence[str]


def _entries(content: Any) -> Iterable[Any]:
    if isinstance(content, list):
        return content
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, dict) or not all(
        isinstance(data.get(key), list) for key in ("dialogs", "questions", "answers")
    ):
        raise ValueError("expected a list of dialogues, or VisDial's data with dialogs, questions and answers")
    return [_Pooled(entry, data["questions"], data["answers"]) for entry in data["dialogs"]]


def _dialogue(entry: Any, captions: Mapping[int, str]) -> Dialogue:
    try:
        return _pooled(entry, captions) if isinstance(entry, _Pooled) else _plain(entry)
    except KeyError as error:
        raise ValueError(f"has no {error.args[0]!r}") from None
    except (TypeError, IndexError) as error:
        raise ValueError(f"has a field of another form ({error})") from None


def _plain(entry: Any) -> Dialogue:
    caption, *turns = entry["dialog"]
    split = []
    for turn in turns:
        question, mark, answer = turn.partition("?")
        if not mark:
            raise ValueError(f"has a turn without a question mark: {turn!r}")
        split.append((question, answer))
    return _checked(Dialogue(str(entry.get("img", "")), caption, tuple(split)))


def _pooled(entry: _Pooled, captions: Mapping[int, str]) -> Dialogue:
    dialogue, questions, answers = entry
    image = int(dialogue["image_id"])
    caption = dialogue["caption"] if "caption" in dialogue else captions.get(image)
    if caption is None:
        raise ValueError(f"has no caption, and no COCO caption of image {image} was given (--visdial.captions)")
    # The last question of a test dialogue has no answer yet.
    turns = [(_at(questions, t["question"]), _at(answers, t["answer"])) for t in dialogue["dialog"] if "answer" in t]
    return _checked(Dialogue(str(image), caption, tuple(turns)))


def _at(pool: Sequence[str], index: Any) -> str:
    if not isinstance(index, int) or not 0 <= index < len(pool):
        raise ValueError(f"has an index outside its pool of {len(pool)}: {index!r}")
    return pool[index]


def _checked(dialogue: Dialogue) -> Dialogue:
    if not isinstance(dialogue.caption, str) or not env_tokens(dialogue.caption):
        raise ValueError("has a caption without words")
    if not dialogue.turns:
        raise ValueError("has no turns")
    return dialogue
