"""Visual Dialog: the caption's words, or the image's patches, are ENV; the turns are LAN.

Two forms of file are read: VisDial's own v1.0 (questions and answers are indices into pools), with captions inside or
in a COCO captions file; and a plain list of dialogues, each the caption followed by ten "question? answer".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from symground.data.files import LeftOut, Limits, field, file_names, files_in, parse_json, typed
from symground.data.sequences import CorpusBuilder, ImageSet, image_key, share_of
from symground.data.words import env_tokens, lan_tokens, speaker, words_in
from symground.progress import progress
from symground.typed import check_kind, check_types

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
        check_types(self, DialogSettings)
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"rounds: expected at least 1, got {self.rounds}")


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
            asked, said = lan_tokens(fold(question)), lan_tokens(fold(answer))
            found.append([speaker(QUESTION), *asked, speaker(ANSWER), *said])
        return found


def add_dialogues(
    builder: CorpusBuilder, paths: Sequence[str | Path], settings: DialogSettings, *, validation: float = 0.0,
    strict: bool = False, nouns: Collection[str] = (), limits: Limits | None = None,
) -> None:  # fmt: skip
    """Add every dialogue of the JSON files under ``paths`` (files, folders, archives), a document each.

    A dialogue that lacks a field or has one of another type, or a file of another form, is set aside and listed with
    its place and the reason in ``builder.statistics["visdial"]``. Dialogues whose image is not in the image set are
    counted there. A file that is reached twice is read once. Each file is read whole.

    Args:
        builder: collects the documents, named FILE#NUMBER.
        paths: of JSON files.
        settings: how dialogues become sequences.
        validation: the share of dialogues kept from training, chosen by their images.
        strict: raise for the first dialogue that cannot be read, instead of setting it aside.
        nouns: an image shows those of these nouns that its caption names.
        limits: how large files may be, and whether links are followed.

    Raises:
        FileNotFoundError: a path or the image set does not exist.
        ValueError: a path is of another kind, there is no dialogue in any of them, or with ``strict``, one cannot be
            read.
    """
    check_kind(builder, CorpusBuilder, "builder")
    check_kind(settings, DialogSettings, "settings")
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

    left_out: LeftOut = []
    names = file_names(paths, ".json", limits, left_out)
    with progress("dialogues", len(names), quick=True) as bar:
        for name, content in files_in(paths, ".json", limits=limits):
            counts["files"] += 1
            try:
                entries = list(_entries(parse_json(content)))
            except ValueError as error:
                counts["files_set_aside"] += 1
                set_aside(name, str(error))
                entries = []
            for number, entry in enumerate(entries):
                counts["dialogues"] += 1
                try:
                    dialogue = _dialogue(entry, captions)
                except ValueError as error:
                    counts["dialogues_set_aside"] += 1
                    set_aside(f"{name}#{number}", str(error))
                    continue
                # By the image's key, not its file's name, so that no image of training is in a dialogue for validation.
                key = image_key(dialogue.image) if dialogue.image else f"{name}#{number}"
                held = share_of(key) < validation
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
        **{key: counts[key] for key in keys}, "files_not_read": len(left_out),
        "skipped": [*skipped, *({"file": name, "reason": f"not read, it {why}"} for name, why in left_out)],
        "settings": asdict(settings),
    }  # fmt: skip
    if not counts["files"]:
        raise ValueError(f"paths: no .json file in {', '.join(map(str, paths))}")
    if counts["dialogues"] == counts["dialogues_set_aside"]:
        first = "".join(f"; the first, {entry['file']}: {entry['reason']}" for entry in skipped[:1])
        raise ValueError(f"paths: no dialogue could be read{first or ', the files hold none'}")
    if counts["dialogues"] == counts["dialogues_set_aside"] + counts["dialogues_without_image"]:
        raise ValueError(
            f"images: {settings.images} has no image of these dialogues (they are matched by the number in its name)"
        )


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
            yield _dialogue(entry, captions or {})
        except ValueError as error:
            raise ValueError(f"paths: {path}#{number}: {error}") from None


def _read_entries(path: str | Path) -> Iterable[Any]:
    try:
        return _entries(parse_json(Path(path).read_bytes()))
    except ValueError as error:
        raise ValueError(f"paths: {path}: {error}") from None


def readable_dialogues(paths: Sequence[str | Path], captions: Mapping[int, str] | None = None) -> Iterator[Dialogue]:
    """The dialogues under ``paths`` that :func:`add_dialogues` does not set aside, in its order."""
    for _, content in files_in(paths, ".json"):
        try:
            entries = list(_entries(parse_json(content)))
        except ValueError:
            continue
        for entry in entries:
            with suppress(ValueError):
                yield _dialogue(entry, captions or {})


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
        for number, entry in enumerate(field(content, "annotations", list)):
            place = f"annotations[{number}]"
            image, of_annotation = field(entry, "image_id", int, place), field(entry, "id", int, place)
            caption = of_annotation, field(entry, "caption", str, place)
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


def _entries(content: Any) -> Iterable[Any]:
    if isinstance(content, list):
        return content
    if not isinstance(content, dict) or "data" not in content:
        raise ValueError("expected a list of dialogues, or VisDial's data with dialogs, questions and answers")
    pools = [field(field(content, "data", dict), name, list, "data") for name in ("dialogs", "questions", "answers")]
    return [_Pooled(entry, *pools[1:]) for entry in pools[0]]


def _dialogue(entry: Any, captions: Mapping[int, str]) -> Dialogue:
    return _pooled(entry, captions) if isinstance(entry, _Pooled) else _plain(entry)


def _plain(entry: Any) -> Dialogue:
    parts = field(entry, "dialog", list)
    if not parts:
        raise ValueError("dialog: expected a caption and turns, got an empty list")
    caption, *turns = (typed(part, str, f"dialog[{number}]") for number, part in enumerate(parts))
    split = []
    for turn in turns:
        question, mark, answer = turn.partition("?")
        if not mark:
            raise ValueError(f"has a turn without a question mark: {turn!r}")
        split.append((question, answer))
    return _checked(Dialogue(field(entry, "img", str) if "img" in entry else "", caption, tuple(split)))


def _pooled(entry: _Pooled, captions: Mapping[int, str]) -> Dialogue:
    dialogue, questions, answers = entry
    image = field(dialogue, "image_id", int)
    caption = field(dialogue, "caption", str) if "caption" in dialogue else captions.get(image)
    if caption is None:
        raise ValueError(f"has no caption, and no COCO caption of image {image} was given (--visdial.captions)")
    turns = []
    for number, turn in enumerate(field(dialogue, "dialog", list)):
        place = f"dialog[{number}]"
        asked = _at(questions, field(turn, "question", int, place), "questions")
        if "answer" in turn:  # the last question of a test dialogue has no answer
            turns.append((asked, _at(answers, field(turn, "answer", int, place), "answers")))
    return _checked(Dialogue(str(image), caption, tuple(turns)))


def _at(pool: Sequence[Any], index: int, name: str) -> str:
    if not 0 <= index < len(pool):
        raise ValueError(f"has an index outside its pool of {len(pool)}: {index!r}")
    found: str = typed(pool[index], str, f"data.{name}[{index}]")
    return found


def _checked(dialogue: Dialogue) -> Dialogue:
    if not words_in(dialogue.caption):
        raise ValueError("has a caption without words")
    if not dialogue.turns:
        raise ValueError("has no turns")
    return dialogue
