"""Questions about images as a vision-language model reads them: ids, and the parts of the prompt.

The processor's own ids show where the image is. Its chat template and its tokenizer's offsets show where the system
prompt, the question, and the beginning of an answer are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from symground.data.vision.patch_grids import PatchMap, patch_maps
from symground.errors import panics_named

Span = tuple[int, int]
#: The parts of a prompt, in the order in which they may occur.
PARTS = ("system", "image", "question", "answer")
#: Put after a question to find its place in a template, because the question's own text may occur elsewhere too.
_MARK = "\ufffc"


class Prompt(NamedTuple):
    """A question about an image as T tokens, ready to be answered."""

    ids: tuple[int, ...]
    spans: Mapping[str, tuple[int, ...]]
    """Name of a part → the positions of its tokens; tokens that a template adds between parts are in none."""
    answer: int | None
    """The first token of the given answer."""
    maps: tuple[PatchMap, ...]
    """Where the image's tokens are: several maps if a model reads it at several scales, none if unknown."""


def processed(processor: Any, image: Any, text: str) -> dict[str, Tensor]:
    """The processor's result for one picture and one text: tensors with one row."""
    found = processor(images=[image], text=[text], return_tensors="pt", **_special(processor, text))
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _special(processor: Any, text: str) -> dict[str, bool]:
    """Options to encode a text that may already begin with the special tokens that the tokenizer would add."""
    opens = getattr(processor.tokenizer, "bos_token", None)
    return {"add_special_tokens": False} if opens and text.startswith(opens) else {}


def prompt_text(
    processor: Any,
    question: str,
    system: str | None = None,
    answer_prefix: str | None = None,
    answer: str | None = None,
) -> str:
    """The prompt from the processor's chat template, up to the answer, or with the beginning of the answer.

    Args:
        processor: of a vision-language model.
        question: about the image.
        system: the system prompt, at the beginning.
        answer_prefix: the beginning of the answer, which the model continues.
        answer: a whole answer, after which the turn ends.

    Raises:
        ValueError: the processor has no chat template.
    """
    templates = [getattr(x, "chat_template", None) for x in (processor, processor.tokenizer)]
    if templates == [None, None]:
        raise ValueError(f"processor: {type(processor).__name__} has no chat template; set processor.chat_template")

    def turn(role: str, *content: dict[str, str]) -> dict[str, Any]:
        return {"role": role, "content": list(content)}

    messages = [turn("user", {"type": "image"}, {"type": "text", "text": question})]
    if system is not None:
        messages.insert(0, turn("system", {"type": "text", "text": system}))
    begun = answer_prefix if answer is None else answer
    if begun is not None:
        messages.append(turn("assistant", {"type": "text", "text": begun}))
    how: dict[str, Any] = {
        "add_generation_prompt": begun is None,
        "continue_final_message": begun is not None and answer is None,
    }
    if templates[0] is None:
        how["chat_template"] = templates[1]
    text: str = processor.apply_chat_template(messages, tokenize=False, **how)
    return text


def read_prompt(
    processor: Any,
    image: Any,
    question: str,
    *,
    system: str | None = None,
    answer_prefix: str | None = None,
    answer: str | None = None,
) -> Prompt:
    """Encode a question about one picture.

    Args:
        processor: of a vision-language model, with a chat template and a fast tokenizer.
        image: a PIL image.
        question: about the image.
        system: a system prompt; None uses the template's.
        answer_prefix: the beginning of an answer, with which the prompt ends.
        answer: the expected answer, whose first token is found.

    Raises:
        ValueError: the parts of the processor's ids cannot be found: it has no chat template, or one that changes the
            texts; no fast tokenizer; no image token or several; or a tokenizer that joins the answer to the text before
            it.
    """
    text = prompt_text(processor, question, system, answer_prefix)
    text_ids, offsets = _tokens(processor, text)
    image_token = getattr(processor, "image_token_id", None)
    places = [i for i, token in enumerate(text_ids) if token == image_token]
    if len(places) != 1:
        raise ValueError(f"processor: expected one image token (id {image_token}) in {text!r}, got {len(places)}")
    at = places[0]
    inputs = processed(processor, image, text)
    ids = inputs["input_ids"][0].tolist()
    after = len(text_ids) - at - 1
    end = len(ids) - after
    if ids[:at] != text_ids[:at] or ids[end:] != text_ids[at + 1 :]:
        raise ValueError(
            f"processor: expected {type(processor).__name__} to keep its tokenizer's ids before and after the image"
        )
    patches = tuple(i for i in range(at, end) if ids[i] == image_token)
    if not patches:
        raise ValueError(
            f"processor: expected image tokens (id {image_token}) in the ids of {type(processor).__name__}, got none"
        )

    def positions(first: int, last: int) -> tuple[int, ...]:
        """The positions of the tokens of characters [first, last) of the text."""
        shift = len(ids) - len(text_ids)
        found = [i for i, (a, b) in enumerate(offsets) if a < last and b > first and b > a and i != at]
        return tuple(i + shift if i > at else i for i in found)

    start = prompt_text(processor, question + _MARK, system, answer_prefix).find(_MARK) - len(question)
    if start < 0 or text[start : start + len(question)] != question:
        raise ValueError(f"processor: its chat template does not keep the question {question!r} as it is")
    spans = {"image": patches, "question": positions(start, start + len(question))}
    begins = min(patches[0], *spans["question"])
    spans["system"] = tuple(range(begins))  # with any opening token, on which many models rest their attention
    if answer_prefix is not None:
        # Many templates strip trailing blanks.
        kept = answer_prefix if text.endswith(answer_prefix) else answer_prefix.rstrip()
        if not text.endswith(kept):
            raise ValueError(
                f"processor: its chat template does not keep the beginning {answer_prefix!r} of an answer as it is"
            )
        spans["answer"] = positions(len(text) - len(kept), len(text))
    first = None if answer is None else _first_token(processor, question, system, answer_prefix, answer, text, text_ids)
    ordered = {name: spans[name] for name in PARTS if name in spans}
    return Prompt(tuple(ids), ordered, first, patch_maps(processor, image, inputs, len(patches)))


def _tokens(processor: Any, text: str) -> tuple[list[int], list[Span]]:
    """Ids and offsets, without tokens that close the text."""
    tokenizer = processor.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"processor: expected a fast tokenizer, got {type(tokenizer).__name__}")
    with panics_named(f"processor: its tokenizer fails on {text!r}"):
        encoded = tokenizer(text, return_offsets_mapping=True, **_special(processor, text))
    return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]


def _first_token(
    processor: Any,
    question: str,
    system: str | None,
    answer_prefix: str | None,
    answer: str,
    text: str,
    text_ids: list[int],
) -> int:
    """The first token of the answer, given the prompt's text and its ids."""
    if answer_prefix is not None:
        with_answer = prompt_text(processor, question, system, f"{answer_prefix.rstrip()} {answer}")
    else:
        with_answer = prompt_text(processor, question, system, answer=answer)
    if not (with_answer.startswith(text) and with_answer[len(text) :].lstrip().startswith(answer.strip())):
        raise ValueError(
            f"processor: expected a chat template that continues {text!r} with the answer {answer!r}, "
            f"got {with_answer!r}"
        )
    whole, _ = _tokens(processor, with_answer)
    if whole[: len(text_ids)] != text_ids or len(whole) <= len(text_ids):
        raise ValueError(
            f"processor: its tokenizer joins the answer {answer!r} to the text before it, so the answer has no first "
            "token of its own"
        )
    return whole[len(text_ids)]
