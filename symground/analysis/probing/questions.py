"""Questions about images as examples for analyses of what a vision-language model is about to answer.

`trace`, `find_heads`, `intervene`, `monitor` and `steering` take them in place of probes. The answer is grounded in the
image: a matched example is a question with its own picture, a mismatched one the same question with another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from symground.analysis.probing.examples import Examples
from symground.analysis.probing.sentence_probes import Probes
from symground.data.questions import Question
from symground.data.vision import (
    MAX_MEGAPIXELS,
    PARTS,
    Prompt,
    on_image,
    processed,
    prompt_text,
    read_image,
    read_prompt,
)
from symground.display import as_table, as_text, some
from symground.errors import check_kind, described, integer

#: The default wording of answers.
SAID = {"yes": "Yes", "no": "No"}
_PER_TOKEN = ("attention_mask", "input_ids")


@dataclass(frozen=True)
class ImageQuestions:
    """Questions, each with a picture and the first token of its answer."""

    questions: tuple[Question, ...]
    prompts: tuple[Prompt, ...]
    processor: Any = field(repr=False)
    system: str | None
    instruction: str
    say: Mapping[str, str]
    said: str | None = None
    """The beginning of the answers, which the prompt contains."""
    max_megapixels: int = MAX_MEGAPIXELS
    """The largest size of a picture in million pixels."""
    span: int = 0
    """As for probes; always 0, since the answer is grounded in the image's own tokens."""

    def __len__(self) -> int:
        return len(self.questions)

    def __repr__(self) -> str:
        return as_text("ImageQuestions", self._shown())

    def _repr_html_(self) -> str:
        return as_table("ImageQuestions", self._shown())

    def _shown(self) -> dict[str, object]:
        answers = list(dict.fromkeys(question.answer for question in self.questions))
        return {
            "questions": f"{len(self)}, such as: {self.questions[0].text}",
            "pictures": len(self.contexts),
            "about": some(self.nouns),
            "answers": some([f"{answer} said as {self.say.get(answer, answer)!r}" for answer in answers]),
            "tokens": f"{self.longest[0]} of the longest prompt",
        }

    @property
    def contexts(self) -> tuple[str, ...]:
        """The paths of the pictures, without duplicates."""
        return tuple(dict.fromkeys(question.image for question in self.questions))

    @property
    def nouns(self) -> tuple[str, ...]:
        """The objects of the questions (the answer if the object is unknown), without duplicates."""
        return tuple(dict.fromkeys(map(_about, self.questions)))

    @property
    def longest(self) -> tuple[int, int]:
        """(number of tokens of the longest prompt, its index)."""
        return max((len(prompt.ids), i) for i, prompt in enumerate(self.prompts))

    @property
    def largest_id(self) -> int:
        return max(max(prompt.ids) for prompt in self.prompts)

    def take(self, indices: Sequence[int]) -> ImageQuestions:
        """Only the questions at ``indices``."""
        at = list(indices)
        return replace(
            self, questions=tuple(self.questions[i] for i in at), prompts=tuple(self.prompts[i] for i in at)
        )  # fmt: skip

    def picture(self, i: int) -> Any:
        """The picture of question ``i``, a PIL image."""
        return self._picture_of(self.questions[integer("i", i, -len(self), len(self) - 1)])

    def _picture_of(self, question: Question) -> Any:
        """The picture of a question, a PIL image."""
        return read_image(question.image, self.max_megapixels)

    def on_picture(self, i: int, values: Tensor | NDArray[Any]) -> NDArray[np.float64]:
        """A heat map: the values of a question's image tokens, spread over the pixels of its picture.

        Args:
            i: index of the question.
            values: [T] values of a traced example's keys, such as its layers' saliency at the prediction position,
                ``abs(traced.rows.sum("head")).sum("layer")[i]``.

        Returns:
            [height,width] of the picture. Each patch's value is spread over its area, which preserves the sum.

        Raises:
            ValueError: the arrangement of the model's image tokens is not known.
        """
        picture, prompt = self.picture(i), self.prompts[i]
        of_tokens = values if isinstance(values, Tensor) else np.asarray(values)
        return on_image(prompt.maps, of_tokens[list(prompt.spans["image"])], picture.height, picture.width)

    def matched(self) -> Examples:
        """Each question with its own picture."""
        return self._examples(self.questions, self.prompts)

    def mismatched(self, seed: int = 0) -> Examples:
        """Each question with a random picture of another question.

        Raises:
            ValueError: all questions have the same picture.
        """
        if len(self.contexts) < 2:
            raise ValueError("questions: a mismatched example takes another picture, and all questions have the same")
        rng = np.random.default_rng(integer("seed", seed, 0))
        swapped = []
        for question in self.questions:
            others = [image for image in self.contexts if image != question.image]
            swapped.append(replace(question, image=others[int(rng.integers(len(others)))]))
        return self._examples(swapped, self._read(swapped))

    def _read(self, questions: Sequence[Question]) -> tuple[Prompt, ...]:
        """The prompts of questions, with the processor and settings of this set."""
        return tuple(
            read_prompt(
                self.processor, self._picture_of(question), question.text + self.instruction, system=self.system,
                answer_prefix=self.said, answer=self.say.get(question.answer, question.answer),
            )
            for question in questions
        )  # fmt: skip

    def _examples(self, questions: Sequence[Question], prompts: Sequence[Prompt]) -> Examples:
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts])[:, None]
        ids = torch.empty((len(prompts), int(lengths.max())), dtype=torch.long)
        masks = {name: torch.zeros_like(ids, dtype=torch.bool) for name in PARTS}
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt.ids)] = torch.tensor(prompt.ids)
            ids[i, len(prompt.ids) :] = prompt.ids[-1]  # as for probes
            for name, places in prompt.spans.items():
                masks[name][i, list(places)] = True
        at_p = torch.arange(ids.shape[1]) == lengths - 1
        masks = {name: mask for name, mask in masks.items() if bool(mask.any())}
        numbers = {image: i for i, image in enumerate(self.contexts)}
        return Examples(
            ids, lengths[:, 0] - 1, torch.tensor([prompt.answer for prompt in prompts]),
            [numbers[question.image] for question in self.questions], list(map(_about, self.questions)),
            {"prediction": at_p, "question": masks["question"] & ~at_p}, masks,
            _Pixels(self, tuple(questions), ids.shape[1]),
        )  # fmt: skip


Asked: TypeAlias = Probes | ImageQuestions
"""The inputs that an analysis of examples takes."""


class _Pixels:
    """Further inputs of the model, computed on demand, since the pictures of a whole set do not fit in memory."""

    def __init__(self, owner: ImageQuestions, questions: tuple[Question, ...], length: int) -> None:
        self._owner, self._questions, self._length = owner, questions, length
        self._last: tuple[slice, dict[str, Tensor]] | None = None

    def __call__(self, part: slice) -> dict[str, Tensor]:
        if self._last is None or self._last[0] != part:
            self._last = part, self._made(self._questions[part])
        return self._last[1]

    def _made(self, questions: Sequence[Question]) -> dict[str, Tensor]:
        owner, rows = self._owner, []
        for question in questions:
            text = prompt_text(owner.processor, question.text + owner.instruction, owner.system, owner.said)
            rows.append(processed(owner.processor, owner._picture_of(question), text))
        return _together(rows, self._length)


def _together(rows: Sequence[Mapping[str, Tensor]], length: int) -> dict[str, Tensor]:
    """Inputs of single examples as one batch: per-token inputs are padded at the end, pictures are concatenated."""
    found = {}
    for name in rows[0]:
        if name in _PER_TOKEN:
            continue
        parts = [row[name] for row in rows]
        if all(part.shape == row["input_ids"].shape for part, row in zip(parts, rows, strict=True)):
            parts = [pad(part, (0, length - part.shape[1])) for part in parts]
        elif len({part.shape[1:] for part in parts}) > 1:  # every picture gets the largest number of tiles
            most = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
            parts = [
                pad(p, [x for n, m in zip(reversed(p.shape[1:]), reversed(most), strict=True) for x in (0, m - n)])
                for p in parts
            ]
        found[name] = torch.cat(parts)
    return found


def _about(question: Question) -> str:
    return question.about or question.answer


def image_questions(
    processor: Any,
    questions: Sequence[Question],
    *,
    system: str | None = None,
    instruction: str = "",
    say: Mapping[str, str] | None = None,
    said: str | None = None,
    max_megapixels: int = MAX_MEGAPIXELS,
) -> ImageQuestions:
    """Questions about images, encoded by a model's processor and its chat template.

    The target is the first token of the answer, right after the prompt. The key groups of the examples are "system"
    (everything before image and question, including a token that opens the text), "image" (its placeholders),
    "question" and, with ``said``, "answer" (its beginning). The query groups are "prediction" and "question".

    Args:
        processor: of a vision-language model, with a chat template and a fast tokenizer.
        questions: questions whose images are paths; see :func:`symground.data.read_questions`.
        system: a system prompt; None leaves it to the template.
        instruction: text after each question, such as "\\nAnswer with yes or no.".
        say: answer → its wording; None uses "Yes" and "No" for yes and no, and leaves other answers unchanged.
        said: the beginning of each answer, such as "The answer is"; the prompt ends with it.
        max_megapixels: a larger picture, in million pixels, is refused before it is decompressed.

    Raises:
        FileNotFoundError: a picture does not exist.
        ValueError: no questions, a picture that cannot be read or is too large, a processor whose ids of image and text
            cannot be distinguished, or different answers that begin with the same token.
    """
    if not hasattr(processor, "tokenizer"):
        raise ValueError(
            "processor: expected a vision-language model's, as symground.load_processor gives it, got "
            f"{described(processor)}"
        )
    questions = list(questions) if isinstance(questions, Iterable) and not isinstance(questions, str) else [questions]
    wrong = next((question for question in questions if not isinstance(question, Question)), None)
    if wrong is not None:
        raise ValueError(
            f"questions: expected those that symground.data.read_questions gives, got {described(wrong)}; one by "
            "hand is symground.data.Question(image, text, answer)"
        )
    if not questions:
        raise ValueError("questions: expected at least one, got none")
    missing = [question.image for question in questions if not Path(question.image).is_file()]
    if missing:
        raise FileNotFoundError(f"image: {len(missing)} of {len(questions)} do not exist, such as {missing[0]}")
    for name, text in (("system", system), ("instruction", instruction), ("said", said)):
        if text is not None or name == "instruction":
            check_kind(text, str, name)
    max_megapixels = integer("max_megapixels", max_megapixels, 1)
    say = SAID if say is None else say
    asked = ImageQuestions(tuple(questions), (), processor, system, instruction, say, said, max_megapixels)
    prompts = asked._read(questions)
    first: dict[int, str] = {}
    for question, prompt in zip(questions, prompts, strict=True):
        assert prompt.answer is not None
        if first.setdefault(prompt.answer, question.answer) != question.answer:
            raise ValueError(
                f"questions: the answers {first[prompt.answer]!r} and {question.answer!r} begin with the same token "
                f"(id {prompt.answer}), and only first tokens are told apart; say= can give other words"
            )
    return replace(asked, prompts=prompts)
