"""Questions about images as a vision-language model reads them: ids, which of them are what, and where patches lie.

The processor's own ids say where the image stands; its chat template and its tokenizer's offsets say what the system
prompt is, the question, and an answer that has begun.
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

from symground.data.pictures import DAMAGE, MAX_MEGAPIXELS, open_picture
from symground.optional import require
from symground.panics import panics_named

Span = tuple[int, int]
#: What is found in a prompt, in the order in which it may stand there.
PARTS = ("system", "image", "question", "answer")
#: Stands behind a question to find where a template puts it: what it says may stand elsewhere too.
_MARK = "\ufffc"


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


def read_image(path: str | Path, max_megapixels: int = MAX_MEGAPIXELS) -> Any:
    """A picture, RGB, as a camera held upright.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, or has more than ``max_megapixels`` million points (names the file).
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
    """What the processor makes of one picture and one text; tensors of one row."""
    found = processor(images=[image], text=[text], return_tensors="pt", **_special(processor, text))
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _special(processor: Any, text: str) -> dict[str, bool]:
    """How a text is encoded that may begin as its template has it: with what a tokenizer would put before it again."""
    opens = getattr(processor.tokenizer, "bos_token", None)
    return {"add_special_tokens": False} if opens and text.startswith(opens) else {}


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
        processor: a vision-language model's, with a chat template and a fast tokenizer.
        image: a PIL image.
        question: about it.
        system: a system prompt; None leaves it to the template.
        said: the beginning of an answer, which the prompt ends with.
        answer: the answer that is expected; its first token is found.

    Raises:
        ValueError: a processor whose ids cannot be told apart: no chat template, or one that changes what is said; no
            fast tokenizer; no or several image tokens; a tokenizer that joins the answer with what stands before it.
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
        """Of the characters [first, last) of the text."""
        shift = len(ids) - len(short)
        found = [i for i, (a, b) in enumerate(offsets) if a < last and b > first and b > a and i != at[0]]
        return tuple(i + shift if i > at[0] else i for i in found)

    asked = prompt_text(processor, question + _MARK, system, said).find(_MARK) - len(question)
    if asked < 0 or text[asked : asked + len(question)] != question:
        raise ValueError(f"processor: its chat template does not keep the question {question!r} as it is")
    spans = {"image": patches, "question": positions(asked, asked + len(question))}
    begins = min(patches[0], *spans["question"])
    spans["system"] = tuple(range(begins))  # with whatever opens the text: many models rest their attention there
    if said is not None:
        kept = said if text.endswith(said) else said.rstrip()  # many templates cut off what is blank at the end
        if not text.endswith(kept):
            raise ValueError(f"processor: its chat template does not keep the beginning {said!r} of an answer as it is")
        spans["answer"] = positions(len(text) - len(kept), len(text))
    first = None if answer is None else _first_token(processor, question, system, said, answer, text, short)
    ordered = {name: spans[name] for name in PARTS if name in spans}
    return Prompt(tuple(ids), ordered, first, patch_maps(processor, image, made, len(patches)))


def _tokens(processor: Any, text: str) -> tuple[list[int], list[Span]]:
    """Ids and offsets, without what closes a text."""
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
    """Where the ``count`` tokens of an image lie in it; none where the processor has a form that is not known here."""
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
    # How much of the padding goes is a matter of rounding, and the processor's own.
    unpadded, h = processor._get_unpadded_features(*size, side, side, *(n // pixels.shape[-1] for n in best))
    if count != side * side + unpadded + h:
        return ()
    once = _grid(0, side, side, whole)
    if not unpadded:  # so long and thin that its tiles are all padding
        return (once,)
    w = unpadded // h
    return once, _grid(side * side, h, w, whole, row=w + 1)


def _grid(first: int, h: int, w: int, box: tuple[float, float, float, float], row: int | None = None) -> PatchMap:
    return PatchMap(first + np.arange(h)[:, None] * (row or w) + np.arange(w)[None], box)


def _cut(image_processor: Any, image: Any) -> tuple[float, float, float, float]:
    """What a model sees of a picture that is padded to a square, resized and cut to its middle, where it is."""

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
    """[height,width] what each point of a picture gets of the ``values`` [patches]: each patch's, spread over its area.

    The sum stays what it is, but for patches of what was put around the picture.

    Raises:
        ValueError: no maps.
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
    """[points,patches] how much of each of the patches, which lie between two ends, each of the points takes."""
    edges, ends = np.linspace(0, 1, points + 1), np.linspace(first, last, patches + 1)
    common = np.minimum(edges[1:, None], ends[1:]) - np.maximum(edges[:-1, None], ends[:-1])
    taken: NDArray[np.float64] = common.clip(0) * patches / (last - first)
    return taken
