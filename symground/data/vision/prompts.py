"""Questions about images as a vision-language model reads them: ids, the parts of the prompt, and places of patches.

The processor's own ids show where the image is. Its chat template and its tokenizer's offsets show where the system
prompt, the question, and the beginning of an answer are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symground.data.vision.decoding import DAMAGE, MAX_MEGAPIXELS, open_picture
from symground.optional import require
from symground.panics import panics_named

Span = tuple[int, int]
#: The parts of a prompt, in the order in which they may occur.
PARTS = ("system", "image", "question", "answer")
#: Put after a question to find its place in a template, because the question's own text may occur elsewhere too.
_MARK = "\ufffc"


class PatchMap(NamedTuple):
    """Patches that form a grid over a part of an image."""

    places: NDArray[np.int64]
    """[h,w], the index of each patch among the image's tokens."""
    box: tuple[float, float, float, float]
    """The part of the picture that they cover: left, upper, right, lower, as shares of its width and height."""


class Prompt(NamedTuple):
    """A question about an image as T tokens, ready to be answered."""

    ids: tuple[int, ...]
    spans: Mapping[str, tuple[int, ...]]
    """Name of a part → the positions of its tokens; tokens that a template adds between parts are in none."""
    answer: int | None
    """The first token of the given answer."""
    maps: tuple[PatchMap, ...]
    """Where the image's tokens are: several maps if a model reads it at several scales, none if unknown."""


def read_image(path: str | Path, max_megapixels: int = MAX_MEGAPIXELS) -> Any:
    """A picture in RGB, rotated upright as its metadata say.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it cannot be read, or has more than ``max_megapixels`` million pixels (names the file).
    """
    operations = require("PIL.ImageOps", "images")
    if not Path(path).is_file():
        raise FileNotFoundError(f"image: {path} does not exist")
    try:
        with open_picture(path, max_megapixels) as opened:
            return operations.exif_transpose(opened).convert("RGB")
    except DAMAGE as error:
        raise ValueError(f"image: {path} cannot be read ({error})") from error


def processed(processor: Any, image: Any, text: str) -> dict[str, Tensor]:
    """The processor's result for one picture and one text: tensors with one row."""
    found = processor(images=[image], text=[text], return_tensors="pt", **_special(processor, text))
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _special(processor: Any, text: str) -> dict[str, bool]:
    """Options to encode a text that may already begin with the special tokens that the tokenizer would add."""
    opens = getattr(processor.tokenizer, "bos_token", None)
    return {"add_special_tokens": False} if opens and text.startswith(opens) else {}


def prompt_text(
    processor: Any, question: str, system: str | None = None, said: str | None = None, answer: str | None = None
) -> str:
    """The prompt from the processor's chat template, up to the answer, or with the beginning of the answer.

    Args:
        processor: of a vision-language model.
        question: about the image.
        system: the system prompt, at the beginning.
        said: the beginning of the answer, which the model continues.
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
    begun = said if answer is None else answer
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
    said: str | None = None,
    answer: str | None = None,
) -> Prompt:
    """Encode a question about one picture.

    Args:
        processor: of a vision-language model, with a chat template and a fast tokenizer.
        image: a PIL image.
        question: about the image.
        system: a system prompt; None uses the template's.
        said: the beginning of an answer, with which the prompt ends.
        answer: the expected answer, whose first token is found.

    Raises:
        ValueError: the parts of the processor's ids cannot be found: it has no chat template, or one that changes the
            texts; no fast tokenizer; no image token or several; or a tokenizer that joins the answer to the text before
            it.
    """
    text = prompt_text(processor, question, system, said)
    short, offsets = _tokens(processor, text)
    wanted = getattr(processor, "image_token_id", None)
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
    if not patches:
        raise ValueError(f"processor: {type(processor).__name__} leaves no token of the image (id {wanted}) in the ids")

    def positions(first: int, last: int) -> tuple[int, ...]:
        """The positions of the tokens of characters [first, last) of the text."""
        shift = len(ids) - len(short)
        found = [i for i, (a, b) in enumerate(offsets) if a < last and b > first and b > a and i != at[0]]
        return tuple(i + shift if i > at[0] else i for i in found)

    asked = prompt_text(processor, question + _MARK, system, said).find(_MARK) - len(question)
    if asked < 0 or text[asked : asked + len(question)] != question:
        raise ValueError(f"processor: its chat template does not keep the question {question!r} as it is")
    spans = {"image": patches, "question": positions(asked, asked + len(question))}
    begins = min(patches[0], *spans["question"])
    spans["system"] = tuple(range(begins))  # with any opening token, on which many models rest their attention
    if said is not None:
        kept = said if text.endswith(said) else said.rstrip()  # many templates strip trailing blanks
        if not text.endswith(kept):
            raise ValueError(f"processor: its chat template does not keep the beginning {said!r} of an answer as it is")
        spans["answer"] = positions(len(text) - len(kept), len(text))
    first = None if answer is None else _first_token(processor, question, system, said, answer, text, short)
    ordered = {name: spans[name] for name in PARTS if name in spans}
    return Prompt(tuple(ids), ordered, first, patch_maps(processor, image, made, len(patches)))


def _tokens(processor: Any, text: str) -> tuple[list[int], list[Span]]:
    """Ids and offsets, without tokens that close the text."""
    tokenizer = processor.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"processor: expected a fast tokenizer, got {type(tokenizer).__name__}")
    with panics_named(f"processor: its tokenizer fails on {text!r}"):
        encoded = tokenizer(text, return_offsets_mapping=True, **_special(processor, text))
    return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]


def _first_token(
    processor: Any, question: str, system: str | None, said: str | None, answer: str, text: str, short: list[int]
) -> int:
    if said is not None:
        answered = prompt_text(processor, question, system, f"{said.rstrip()} {answer}")
    else:
        answered = prompt_text(processor, question, system, answer=answer)
    if not (answered.startswith(text) and answered[len(text) :].lstrip().startswith(answer.strip())):
        raise ValueError(
            f"processor: with the answer {answer!r} its chat template makes {answered!r}, which does not go on with it "
            f"from {text!r}"
        )
    whole, _ = _tokens(processor, answered)
    if whole[: len(short)] != short or len(whole) <= len(short):
        raise ValueError(
            f"processor: its tokenizer joins the answer {answer!r} with what stands before it, so that it has no first "
            "token of its own"
        )
    return whole[len(short)]


def patch_maps(processor: Any, image: Any, made: Mapping[str, Tensor], count: int) -> tuple[PatchMap, ...]:
    """Where the ``count`` tokens of an image are in it; none if the processor has an unknown form."""
    whole = (0.0, 0.0, 1.0, 1.0)
    if "image_grid_thw" in made:  # Qwen-VL: merged patches of the whole picture
        merge = int(getattr(processor.image_processor, "merge_size", 1))
        _, h, w = made["image_grid_thw"][0].tolist()
        return (_grid(0, h // merge, w // merge, whole),) if count == h * w // merge**2 else ()
    pixels, sizes = made["pixel_values"], made.get("image_sizes")
    if sizes is None:
        side = math.isqrt(count)
        one = pixels.ndim == 4 and len(pixels) == 1 and side * side == count
        return (_grid(0, side, side, _cut(processor.image_processor, image)),) if one else ()
    patch, tokens = (getattr(processor, name, None) for name in ("patch_size", "num_image_tokens"))
    if pixels.ndim == 4 and patch is not None:  # Pixtral: patches of the whole picture, whatever its shape
        h, w = (sizes[0] // (patch * getattr(processor, "spatial_merge_size", 1))).tolist()
        return (_grid(0, h, w, whole),) if count == h * w else ()
    if pixels.ndim != 5 or (patch is not None and processor.vision_feature_select_strategy != "default"):
        return ()
    from transformers.image_processing_utils import select_best_resolution

    # LLaVA-NeXT and OneVision: the picture, then its unpadded tiles, a token at the end of each row
    side = math.isqrt(tokens or 0) if patch is None else pixels.shape[-1] // patch
    size = (image.height, image.width)
    best = select_best_resolution(size, processor.image_processor.image_grid_pinpoints)
    # The amount of padding removed depends on the processor's own rounding.
    unpadded, h = processor._get_unpadded_features(*size, side, side, *(n // pixels.shape[-1] for n in best))
    if count != side * side + unpadded + h:
        return ()
    once = _grid(0, side, side, whole)
    if not unpadded:  # so long and thin that all its tiles are padding
        return (once,)
    w = unpadded // h
    return once, _grid(side * side, h, w, whole, row=w + 1)


def _grid(first: int, h: int, w: int, box: tuple[float, float, float, float], row: int | None = None) -> PatchMap:
    return PatchMap(first + np.arange(h)[:, None] * (row or w) + np.arange(w)[None], box)


def _cut(image_processor: Any, image: Any) -> tuple[float, float, float, float]:
    """The part of a picture that a model sees after padding to a square, resizing and cropping, as shares."""

    def length(name: str, side: str) -> float | None:
        size = getattr(image_processor, name, None)
        found: float | None = size.get(side) if isinstance(size, Mapping) else getattr(size, side, None)
        return found

    def does(name: str, otherwise: bool = False) -> bool:
        return bool(getattr(image_processor, name, otherwise))

    padded = does("do_pad") and hasattr(image_processor, "pad_to_square")
    least = max(image.size) if padded else min(image.size)
    ends = []
    for side, own in (("width", image.width), ("height", image.height)):
        before = max(image.size) if padded else own
        short = length("size", "shortest_edge")
        resized = length("size", side) or before if short is None else short * before / least
        after = resized if does("do_resize", True) else before
        kept = (length("crop_size", side) or after) / after if does("do_center_crop") else 1.0
        ends.append(kept * before / own / 2)
    return 0.5 - ends[0], 0.5 - ends[1], 0.5 + ends[0], 0.5 + ends[1]


def on_image(maps: tuple[PatchMap, ...], values: Tensor | NDArray[Any], height: int, width: int) -> NDArray[np.float64]:
    """[height,width], the ``values`` [patches] on a picture's pixels: each patch's value is spread over its area.

    The sum is preserved, except for patches of the padding around the picture.

    Raises:
        ValueError: there are no maps.
    """
    if not maps:
        raise ValueError("maps: where this model's image tokens lie in the picture is not known")
    of_token = np.asarray(values.detach().double().cpu() if isinstance(values, torch.Tensor) else values, dtype=float)
    total = np.zeros((height, width))
    for places, (left, upper, right, lower) in maps:
        rows, columns = _shares(height, places.shape[0], upper, lower), _shares(width, places.shape[1], left, right)
        total += rows @ of_token[places] @ columns.T
    return total


def _shares(points: int, patches: int, first: float, last: float) -> NDArray[np.float64]:
    """[points,patches], the share of each patch, between two ends, that each pixel gets."""
    edges, ends = np.linspace(0, 1, points + 1), np.linspace(first, last, patches + 1)
    common = np.minimum(edges[1:, None], ends[1:]) - np.maximum(edges[:-1, None], ends[:-1])
    taken: NDArray[np.float64] = common.clip(0) * patches / (last - first)
    return taken
