"""Questions about images as a vision-language model reads them: ids, which of them are what, and where patches lie.

The processor's own ids say where the image stands; its chat template and its tokenizer's offsets say what the system
prompt is, the question, and an answer that has begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symground.optional import require

Span = tuple[int, int]
#: What is found in a prompt, in the order in which it may stand there.
PARTS = ("system", "image", "question", "answer")


class PatchMap(NamedTuple):
    """Patches of an image that lie in a grid over a part of it."""

    places: NDArray[np.int64]
    """[h,w] which of the image's tokens each is, from 0."""
    box: tuple[float, float, float, float]
    """What of the picture they cover: left, upper, right, lower, in shares of its width and height."""


class Prompt(NamedTuple):
    """A question about an image, T tokens, ready to be answered."""

    ids: tuple[int, ...]
    spans: Mapping[str, tuple[int, ...]]
    """Name of a part → the positions of its tokens; what a template adds between them is in none."""
    answer: int | None
    """The first token of the answer that was given."""
    maps: tuple[PatchMap, ...]
    """Where the image's tokens lie; several where a model reads it at several scales, none where that is not known."""


def read_image(path: str | Path) -> Any:
    """A picture, RGB. FileNotFoundError or ValueError by the file's name."""
    image = require("PIL.Image", "images")
    if not Path(path).is_file():
        raise FileNotFoundError(f"image: {path} does not exist")
    try:
        with image.open(path) as opened:
            return opened.convert("RGB")
    except OSError as error:
        raise ValueError(f"image: {path} cannot be read ({error})") from error


def processed(processor: Any, image: Any, text: str) -> dict[str, Tensor]:
    """What the processor makes of one picture and one text; tensors of one row."""
    found = processor(images=[image], text=[text], return_tensors="pt")
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def prompt_text(
    processor: Any, question: str, system: str | None = None, said: str | None = None, answer: str | None = None
) -> str:
    """The prompt as the processor's chat template writes it, up to where an answer begins, or with its beginning.

    Args:
        processor: of a vision-language model.
        question: about the image.
        system: what stands before all.
        said: how the answer begins; the prompt goes on from there.
        answer: a whole answer, after which the turn ends.

    Raises:
        ValueError: a processor without a chat template.
    """
    if all(getattr(x, "chat_template", None) is None for x in (processor, processor.tokenizer)):
        raise ValueError(f"processor: {type(processor).__name__} has no chat template; set processor.chat_template")

    def turn(role: str, *content: dict[str, str]) -> dict[str, Any]:
        return {"role": role, "content": list(content)}

    messages = [turn("user", {"type": "image"}, {"type": "text", "text": question})]
    if system is not None:
        messages.insert(0, turn("system", {"type": "text", "text": system}))
    begun = said if answer is None else answer
    if begun is not None:
        messages.append(turn("assistant", {"type": "text", "text": begun}))
    how = {"add_generation_prompt": begun is None, "continue_final_message": begun is not None and answer is None}
    text: str = processor.apply_chat_template(messages, tokenize=False, **how)
    return text


def read_prompt(
    processor: Any,
    image: Any,
    question: str,
    *,
    system: str | None = None,
    said: str | None = None,
    answer: str | None = None,
) -> Prompt:
    """Encode a question about one picture.

    Args:
        processor: a vision-language model's, with a chat template and a fast tokenizer.
        image: a PIL image.
        question: about it.
        system: a system prompt; None leaves it to the template.
        said: the beginning of an answer, which the prompt ends with.
        answer: the answer that is expected; its first token is found.

    Raises:
        ValueError: a processor whose ids cannot be told apart: no chat template, no fast tokenizer, no or several image
            tokens, a tokenizer that joins the answer with what stands before it.
    """
    text = prompt_text(processor, question, system, said)
    short, offsets = _tokens(processor, text)
    wanted = processor.image_token_id
    at = [i for i, token in enumerate(short) if token == wanted]
    if len(at) != 1:
        raise ValueError(f"processor: expected one image token (id {wanted}) in {text!r}, found {len(at)}")
    made = processed(processor, image, text)
    ids = made["input_ids"][0].tolist()
    after = len(short) - at[0] - 1
    end = len(ids) - after
    if ids[: at[0]] != short[: at[0]] or ids[end:] != short[at[0] + 1 :]:
        raise ValueError(
            f"processor: the ids of {type(processor).__name__} are not those of its tokenizer around the image"
        )
    patches = tuple(i for i in range(at[0], end) if ids[i] == wanted)

    def positions(first: int, last: int) -> tuple[int, ...]:
        """Of the characters [first, last) of the text."""
        shift = len(ids) - len(short)
        found = [i for i, (a, b) in enumerate(offsets) if a < last and b > first and b > a and i != at[0]]
        return tuple(i + shift if i > at[0] else i for i in found)

    asked = text.rfind(question, 0, len(text) - len(said or ""))
    if asked < 0:
        raise ValueError(f"processor: its chat template does not keep the question {question!r} as it is")
    spans = {"image": patches, "question": positions(asked, asked + len(question))}
    begins = min(patches[0], *spans["question"])
    spans["system"] = tuple(range(begins))  # with whatever opens the text: many models rest their attention there
    if said is not None:
        from_there = text.rfind(said)
        spans["answer"] = positions(from_there, from_there + len(said))
    first = None if answer is None else _first_token(processor, question, system, said, answer, short)
    ordered = {name: spans[name] for name in PARTS if name in spans}
    return Prompt(tuple(ids), ordered, first, patch_maps(processor, image, made, len(patches)))


def _tokens(processor: Any, text: str) -> tuple[list[int], list[Span]]:
    """Ids and offsets, without what closes a text."""
    tokenizer = processor.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"processor: expected a fast tokenizer, got {type(tokenizer).__name__}")
    encoded = tokenizer(text, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]


def _first_token(
    processor: Any, question: str, system: str | None, said: str | None, answer: str, short: list[int]
) -> int:
    if said is not None:
        text = prompt_text(processor, question, system, f"{said} {answer}")
    else:
        text = prompt_text(processor, question, system, answer=answer)
    whole, _ = _tokens(processor, text)
    if whole[: len(short)] != short or len(whole) <= len(short):
        raise ValueError(
            f"processor: its tokenizer joins the answer {answer!r} with what stands before it, so that it has no first "
            "token of its own"
        )
    return whole[len(short)]


def patch_maps(processor: Any, image: Any, made: Mapping[str, Tensor], count: int) -> tuple[PatchMap, ...]:
    """Where the ``count`` tokens of an image lie in it; none where the processor has a form that is not known here."""
    whole = (0.0, 0.0, 1.0, 1.0)
    if "image_grid_thw" in made:  # Qwen-VL: merged patches of the whole picture
        merge = int(getattr(processor.image_processor, "merge_size", 1))
        _, h, w = made["image_grid_thw"][0].tolist()
        return (_grid(0, h // merge, w // merge, whole),) if count == h * w // merge**2 else ()
    if "image_sizes" in made:  # LLaVA-NeXT: the picture, then its unpadded tiles, a token at the end of each row
        side = made["pixel_values"].shape[-1] // int(processor.patch_size)
        rest, aspect = count - side * side, image.width / image.height
        if rest <= 0:
            return (_grid(0, side, side, whole),) if rest == 0 else ()
        shapes = [(h, rest // h - 1) for h in range(1, rest + 1) if rest % h == 0 and rest // h > 1]
        h, w = min(shapes, key=lambda shape: abs(np.log(shape[1] / shape[0] / aspect)))
        return _grid(0, side, side, whole), _grid(side * side, h, w, whole, row=w + 1)
    side = round(count**0.5)
    if side * side != count or made["pixel_values"].shape[0] != 1 or made["pixel_values"].ndim != 4:
        return ()
    return (_grid(0, side, side, _crop(processor.image_processor, image)),)


def _grid(first: int, h: int, w: int, box: tuple[float, float, float, float], row: int | None = None) -> PatchMap:
    return PatchMap(first + np.arange(h)[:, None] * (row or w) + np.arange(w)[None], box)


def _crop(image_processor: Any, image: Any) -> tuple[float, float, float, float]:
    """The square in the middle, where the shorter side is resized and the rest cut off; else the whole picture."""
    size = getattr(image_processor, "size", None)
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else getattr(size, "shortest_edge", None)
    if not getattr(image_processor, "do_center_crop", False) or shortest is None:
        return (0.0, 0.0, 1.0, 1.0)
    least = min(image.width, image.height)
    x, y = (1 - least / image.width) / 2, (1 - least / image.height) / 2
    return (x, y, 1 - x, 1 - y)


def on_image(maps: tuple[PatchMap, ...], values: Tensor | NDArray[Any], height: int, width: int) -> NDArray[np.float64]:
    """[height,width] what each point of a picture gets of the ``values`` [patches]: each patch's, spread over its area.

    Raises:
        ValueError: no maps.
    """
    if not maps:
        raise ValueError("maps: where this model's image tokens lie in the picture is not known")
    of_token = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=float)
    total = np.zeros((height, width))
    for places, (left, upper, right, lower) in maps:
        rows = ((np.arange(height) + 0.5) / height - upper) / (lower - upper) * places.shape[0]
        columns = ((np.arange(width) + 0.5) / width - left) / (right - left) * places.shape[1]
        inside = np.outer((rows >= 0) & (rows < places.shape[0]), (columns >= 0) & (columns < places.shape[1]))
        i = rows.astype(int).clip(0, places.shape[0] - 1)[:, None]
        j = columns.astype(int).clip(0, places.shape[1] - 1)[None]
        area = max(int(inside.sum()) / places.size, 1e-12)  # points a patch: sums stay what they are
        total += np.where(inside, of_token[places[i, j]] / area, 0.0)
    return total
