"""The parts of a conversation about images, by the placeholders of the images in it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel


def spans_of(model: PreTrainedModel, ids: Tensor, valid: Tensor, answer: Tensor | None = None) -> dict[str, Tensor]:
    """Masks [B,T] of ids [B,T]: "system", "image", "question" and "answer"; none if no text has an image.

    "system" is what stands before a text's first image, "question" what follows it outside of images and answers. A
    text without an image is all "question". ``valid`` [B,T] are its words, ``answer`` [B,T] those of answers, None if
    there are none.
    """
    token = getattr(model.config, "image_token_id", None)
    image = torch.zeros_like(valid) if token is None else (ids.cpu() == token) & valid
    if not bool(image.any()):
        return {}
    answer = torch.zeros_like(valid) if answer is None else answer & valid & ~image
    before = (image.cumsum(-1) == 0) & image.any(-1, keepdim=True)
    system = before & valid & ~answer
    return {"system": system, "image": image, "question": valid & ~system & ~image & ~answer, "answer": answer}
