"""POPE from COCO's annotations: for each image, equally many questions about objects that are there and that are not.

Source: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models", section 5. A model that
answers from what usually occurs together, and not from the image, says yes to popular and adversarial objects.
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import tyro

from symground.data.files import json_field, parse_json
from symground.data.questions.question_files import Question, write_questions
from symground.errors import check_path, check_types, choice, integer, several

STRATEGIES = ("random", "popular", "adversarial")

# By sound: "a" for a unicycle, a ewe, a one-way sign; "an" for an hourglass, an x-ray, an SUV.
_AN = re.compile(
    r"(?!eu|ew|one(?:s|\b)|once|u\b|ubi|ufo|uk|uni(?![dmn])|ura|uri|us[aeu]|ut[eio])[aeiou]"
    r"|hour|hon(?:est|o[ru])|heir|[fhlmnrsx]\b|suv\b",
    re.IGNORECASE,
)


def pope_questions(
    instances: str | Path, strategy: str = "random", images: int | None = 500, per_image: int = 6, seed: int = 0, *,
    least: int = 3,
) -> list[Question]:  # fmt: skip
    """Questions "Is there a(n) X in the image?" about randomly drawn images, with yes and no in turn.

    Objects that are in the image are drawn at random. Objects that are not are chosen by the strategy:

    - "random": at random from all categories that the image does not show;
    - "popular": those that most images of the file show;
    - "adversarial": those that most often share an image of the file with the categories that this image shows, summed
      over these. (The authors' code picks, for each object that is there, the object that occurs with it most, and
      counts in the drawn images only.)

    Ties are broken by name. Images and their objects depend only on the seed, so the three strategies share them, and
    fewer images are the first of more. A crowd (``iscrowd``) counts as an object. Plurals keep their article, as in
    POPE's "a skis".

    Args:
        instances: COCO's instances file, or another of its form in which everything that an image shows is annotated;
            the whole file is read into memory.
        strategy: how absent objects are chosen.
        images: the number of images; None is all that are suitable.
        per_image: questions for each image, an even number.
        seed: of the random draws.
        least: images that show fewer categories are skipped, as are those that show, or lack, fewer than the questions
            need.

    Returns:
        images × per_image questions, grouped by image.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the strategy is unknown, the number of questions is odd, the file has another form (such as COCO's
            captions), or there are fewer images than requested (says how many there are).
    """
    choice("strategy", strategy, STRATEGIES)
    _check_numbers(images, per_image, seed)
    integer("least", least, 1)
    categories, shown = _shown(check_path(instances, "instances"))
    each = per_image // 2
    enough = range(max(least, each), len(categories) - each + 1)
    suitable = sorted(name for name, present in shown.items() if len(present) in enough)
    if len(suitable) < (images or 1):
        raise ValueError(
            f"images: expected {images or 'any'} of {instances} that show at least {max(least, each)} of its "
            f"{len(categories)} categories and lack {each}, got {len(suitable)}"
        )
    # Sorted before shuffling, so that the order of the file does not matter.
    random.Random(seed).shuffle(suitable)
    choose = _choice(strategy, shown)
    questions = []
    for image in suitable[:images]:
        draw = random.Random(f"{seed} {image}")
        present = draw.sample(sorted(shown[image]), each)
        absent = choose(shown[image], sorted(categories - shown[image]), each, draw)
        for yes, no in zip(present, absent, strict=True):
            questions.append(Question(image, wording(yes), "yes", yes, strategy))
            questions.append(Question(image, wording(no), "no", no, strategy))
    return questions


def _check_numbers(images: int | None, per_image: int, seed: int) -> None:
    if images is not None:
        integer("images", images, 1)
    if integer("per_image", per_image) < 2 or per_image % 2:
        raise ValueError(f"per_image: expected an even number, at least 2, got {per_image}")
    integer("seed", seed, 0)


def wording(noun: str) -> str:
    """POPE's question: "Is there an apple in the image?"."""
    return f"Is there {'an' if _AN.match(noun) else 'a'} {noun} in the image?"


#: (categories that an image shows, other categories by name, number, random) → this number of the others.
_Choice = Callable[[Collection[str], list[str], int, random.Random], list[str]]


def _choice(strategy: str, shown: dict[str, set[str]]) -> _Choice:
    if strategy == "random":
        return lambda present, others, count, draw: draw.sample(others, count)
    if strategy == "popular":
        frequency = Counter(category for present in shown.values() for category in present)
        return lambda present, others, count, draw: sorted(others, key=lambda other: -frequency[other])[:count]
    together = Counter(pair for present in shown.values() for pair in permutations(present, 2))
    return lambda present, others, count, draw: sorted(
        others, key=lambda other: -sum(together[category, other] for category in present)
    )[:count]


def _shown(path: Path) -> tuple[set[str], dict[str, set[str]]]:
    """All categories; and for each image, by file name, the categories that it shows."""
    if not path.is_file():
        raise FileNotFoundError(f"instances: {path} does not exist")
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"instances: {path} is {error}") from None
    try:
        categories = dict(_pairs(content, "categories", "id", "name"))
        files = dict(_pairs(content, "images", "id", "file_name"))
        shown: dict[str, set[str]] = {name: set() for name in files.values()}
        for number, annotation in enumerate(json_field(content, "annotations", list)):
            place = f"annotations[{number}]"
            category = json_field(annotation, "category_id", int, place)
            image = json_field(annotation, "image_id", int, place)
            if category not in categories:
                raise ValueError(f"{place}.category_id: expected an id of the categories, got {category}")
            # A file reduced to some of the images may still have the annotations of all.
            if image in files:
                shown[files[image]].add(categories[category])
    except ValueError as error:
        raise ValueError(
            f"instances: {path}: {error}; expected COCO's instances: images with id and file_name, annotations with "
            f"image_id and category_id, categories with id and name (a captions file has none)"
        ) from None
    return set(categories.values()), shown


def _pairs(content: Any, name: str, key: str, value: str) -> Iterator[tuple[int, str]]:
    for number, entry in enumerate(json_field(content, name, list)):
        place = f"{name}[{number}]"
        yield json_field(entry, key, int, place), json_field(entry, value, str, place)


@dataclass(frozen=True, kw_only=True)
class PopeSettings:
    """Settings of the questions."""

    strategy: tuple[str, ...] = STRATEGIES
    """How absent objects are chosen; all strategies share the images and the objects that are in them."""
    images: int | None = 500
    """Number of images, drawn at random."""
    per_image: int = 6
    """Questions for each image, half of them about objects that are there."""
    seed: int = 0
    """Seed of the random draws."""

    def __post_init__(self) -> None:
        check_types(self)
        several("strategy", self.strategy, STRATEGIES)
        _check_numbers(self.images, self.per_image, self.seed)


def make_questions(instances: str | Path, out: str | Path, settings: PopeSettings) -> Path:
    """Write the questions of all strategies to one file, with the strategy as their category.

    Raises:
        ValueError: an error of :func:`pope_questions`, or there is no strategy.
    """
    questions = [
        question
        for strategy in settings.strategy
        for question in pope_questions(instances, strategy, settings.images, settings.per_image, settings.seed)
    ]
    write_questions(out, questions)
    print(f"{len(questions):,} questions about {len({q.image for q in questions}):,} images", file=sys.stderr)
    return Path(out)


@dataclass(frozen=True, kw_only=True)
class Pope(PopeSettings):
    """``symground pope``."""

    instances: tyro.conf.Positional[str]
    """COCO's annotations: images, categories, annotations."""
    out: str
    """The file of questions (JSON lines)."""

    def run(self) -> Path:
        return make_questions(self.instances, self.out, self)
