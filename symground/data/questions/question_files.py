"""Questions about images with their expected answers: POPE's files, or any rows of image, question and answer.

POPE's form is that of Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models": one JSON
object per line with question_id, image, text ("Is there a dog in the image?") and label ("yes", "no").
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from symground.data.files import parse_json
from symground.errors import check_file, check_kind, check_path, flag
from symground.files import replacing

# Text after the question does not matter, such as "Answer in one word." in files made for one model.
_WORDING = re.compile(r"\s*is there an? (.+?) in the image\?", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A question about an image.

    Raises:
        ValueError: a field is not text or is empty, or the answer is not in the form in which a file would give it.
    """

    image: str
    """File name or path."""
    text: str
    answer: str
    """In lower case if it is "yes" or "no"; otherwise unchanged."""
    about: str | None = None
    """The object in question; None if unknown."""
    kind: str = ""
    """How the object was chosen (POPE's "random", "popular", "adversarial"), or another group of questions."""

    def __post_init__(self) -> None:
        named = {"image": self.image, "text": self.text, "answer": self.answer}
        if self.about is not None:
            named["about"] = self.about
        for name, value in named.items():
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name}: expected text, got {value!r}")
        if self.answer != _as_answer(self.answer):
            raise ValueError(f"answer: expected {_as_answer(self.answer)!r}, got {self.answer!r}")


def read_questions(path: str | Path, images: str | Path | None = None, *, anywhere: bool = False) -> list[Question]:
    """The questions of a file: JSON lines, as in POPE's for COCO, or a JSON list, as in POPE's for A-OKVQA and GQA.

    A row has image; text or question; label or answer; and may have object or about, and kind or category. If it has
    both names of a field, the first is read. If it has neither object nor about, ``about`` is the X of "Is there a(n) X
    in the image?" if the text begins so.

    Args:
        path: of the file.
        images: the folder of the images. Without it, an image found beside the file under its relative name gets that
            path, and the others keep their names.
        anywhere: allow images whose names lead out of the folder (../).

    Raises:
        FileNotFoundError: the file or the folder does not exist, or images are not in the folder (says how many).
        ValueError: a row lacks a field or has one of another form (names the file and the line, or the entry of a
            list), an image's name leads out of the folder, or there are no rows.
    """
    path, anywhere = check_path(path, "path"), flag("anywhere", anywhere)
    if not path.is_file():
        raise FileNotFoundError(f"path: {path} does not exist")
    questions = []
    for place, row in _rows(path):
        try:
            question = _question(row)
            if not anywhere and ".." in PurePosixPath(question.image.replace("\\", "/")).parts:
                raise ValueError(f"image: {question.image!r} leads out of its folder (anywhere=True allows it)")
            questions.append(question)
        except ValueError as error:
            raise ValueError(f"path: {path}, {place}: {error}") from None
    if not questions:
        raise ValueError(f"path: no question in {path}")
    names = [question.image for question in questions]
    found = _beside(path, names) if images is None else _inside(check_path(images, "images"), names)
    return [replace(question, image=found[question.image]) for question in questions]


def write_questions(path: str | Path, questions: Iterable[Question]) -> None:
    """Write POPE's JSON lines, with "object" and "category" in addition to its own fields, numbered from 1 as in POPE.
    :func:`read_questions` gives equal questions, except for images found beside the file.

    Raises:
        ValueError: there are no questions, or ``path`` is a folder.
    """
    path = check_file(path, "path", makes_folder=True)
    questions = list(questions)
    for question in questions:
        check_kind(question, Question, "questions")
    lines = [
        json.dumps(
            {"question_id": number, "image": q.image, "text": q.text, "label": q.answer, "object": q.about,
             "category": q.kind}
        )
        for number, q in enumerate(questions, 1)
    ]  # fmt: skip
    if not lines:
        raise ValueError("questions: expected at least 1, got none")
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place for an error message, row)."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"path: {path}: not UTF-8 ({error})") from None
    if content.lstrip().startswith("["):
        try:
            listed = parse_json(content)
        except ValueError as error:
            raise ValueError(f"path: {path}: {error}") from None
        yield from ((f"entry {number}", row) for number, row in enumerate(listed, 1))
        return
    # Not splitlines, which also splits at line ends of Unicode that may occur within a JSON string.
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                row = parse_json(line)
            except ValueError as error:
                raise ValueError(
                    f"path: {path}, line {number}: expected JSON lines or a JSON list, got no JSON ({error})"
                ) from None
            yield f"line {number}", row


def _question(row: Any) -> Question:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with image, text and label, got {type(row).__name__}")
    text = _field(row, "text", "question")
    about = _field(row, "object", "about", optional=True)
    if not {"object", "about"} & row.keys():
        wording = _WORDING.match(text)
        about = wording[1].strip() if wording else ""
    return Question(
        _field(row, "image"), text, _as_answer(_field(row, "label", "answer")), about if about.strip() else None,
        _field(row, "kind", "category", optional=True),
    )  # fmt: skip


def _field(row: dict[str, Any], *names: str, optional: bool = False) -> str:
    """The first of these fields that the row has; "" if it has none, or a null, and ``optional``."""
    name = next((name for name in names if name in row), None)
    value = None if name is None else row[name]
    if value is None and optional:
        return ""
    if name is None:
        raise ValueError(f"has no {' or '.join(map(repr, names))}")
    if not isinstance(value, str) or not (optional or value.strip()):
        raise ValueError(f"{name}: expected text, got {value!r:.60}")
    return value


def _as_answer(answer: str) -> str:
    answer = answer.strip()
    return answer.lower() if answer.lower() in ("yes", "no") else answer


def _beside(path: Path, names: Iterable[str]) -> dict[str, str]:
    paths = {name: name if os.path.isabs(name) else str(path.parent / name) for name in names}
    # os.path.isfile is also False for names that cannot be paths at all.
    return {name: candidate if os.path.isfile(candidate) else name for name, candidate in paths.items()}


def _inside(folder: Path, names: Iterable[str]) -> dict[str, str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"images: expected a folder, got {folder}")
    # An absolute path is where the image was when the file was written.
    paths = {name: str(folder / (Path(name).name if os.path.isabs(name) else name)) for name in names}
    missing = [name for name, candidate in paths.items() if not os.path.isfile(candidate)]
    if missing:
        shown = ", ".join(f"{name:.60}" for name in missing[:3]) + (", …" if len(missing) > 3 else "")
        raise FileNotFoundError(f"images: {len(missing):,} of {len(paths):,} are not in {folder}: {shown}")
    return paths
