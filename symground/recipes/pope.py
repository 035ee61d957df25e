"""A file of POPE's questions from COCO's annotations."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from symground.data.pope import pope_questions
from symground.data.questions import write_questions


@dataclass(frozen=True, kw_only=True)
class PopeSettings:
    """Which questions."""

    strategy: tuple[str, ...] = ("random", "popular", "adversarial")
    """How the objects that are not there are chosen; of several, the same images and the same objects that are."""
    images: int | None = 500
    """So many images, at random."""
    per_image: int = 6
    """Questions of each, half of them of what is there."""
    seed: int = 0
    """Of the choice."""


def make_questions(instances: str | Path, out: str | Path, settings: PopeSettings) -> Path:
    """Write the questions of all strategies into one file, each with its strategy as category.

    Raises:
        ValueError: what :func:`symground.data.pope_questions` refuses, or no strategy.
    """
    if not settings.strategy:
        raise ValueError("strategy: expected at least one of random, popular, adversarial; got none")
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
