"""What the model is given to read, as one record: ids, embeddings, or examples of probes and of questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import check_mapping, mask_of, tensor_of, texts_of
from symground.analysis.probing import Examples, ImageQuestions, Probes, check_fits
from symground.analysis.reading.requests import KEYWORDS
from symground.analysis.reading.spans import spans_of
from symground.analysis.tracing import (
    check_alone,
    check_unreserved,
    checked_mask,
    inputs_of,
    last_of,
    masks_of,
    warn_without_pictures,
    with_prediction,
)
from symground.errors import described
from symground.models.hooks import body
from symground.models.passes import check_length, check_names

#: Of the answers in a conversation, as transformers' chat templates return it.
_ANSWERS = "assistant_masks"


class Given(NamedTuple):
    """N texts of T positions."""

    inputs: Callable[[slice], Mapping[str, Any]]
    """The inputs of the model for some of the texts."""
    valid: Tensor
    """[N,T] bool"""
    prediction: Tensor
    """[N] p, the last valid position."""
    queries: dict[str, Tensor]
    """Names → [N,T] bool masks of the query groups."""
    keys: dict[str, Tensor]
    """Likewise of the key groups."""
    ids: Tensor | None
    """[N,T]; None of embeddings."""

    @property
    def examples(self) -> int:
        return self.valid.shape[0]

    @property
    def length(self) -> int:
        return self.valid.shape[1]


def given_of(
    model: PreTrainedModel, input_ids: Any, attention_mask: Any, groups: Mapping[str, Any] | None, batch_size: int,
    model_inputs: Mapping[str, Any],
) -> Given:  # fmt: skip
    """The record of what `attention` is given.

    Raises:
        ValueError, TypeError: as `attention` does.
    """
    if isinstance(input_ids, (Probes, ImageQuestions)):
        check_fits(model, input_ids, images=True, name="input_ids")
        input_ids = input_ids.matched()
    beside = {"attention_mask": attention_mask, "groups": groups, **model_inputs}
    if isinstance(input_ids, Examples):
        return _of_examples(model, input_ids, beside)
    inputs = {n: tensor_of(x, n) if isinstance(x, (np.ndarray, list)) else x for n, x in model_inputs.items()}
    answers = inputs.pop(_ANSWERS, None)
    if "use_cache" in inputs and inputs.pop("use_cache"):
        raise ValueError("use_cache: expected False, since each text is read at once")
    check_names(body(model), inputs, "symground.attention", KEYWORDS)
    embeds = inputs.get("inputs_embeds")
    if (input_ids is None) == (embeds is None):
        raise ValueError("input_ids: expected ids [B,T], or None with inputs_embeds [B,T,D]; got both or neither")
    if input_ids is not None:
        inputs["input_ids"] = ids = texts_of(model, input_ids, "input_ids")
    else:
        if not isinstance(embeds, Tensor) or embeds.ndim != 3:
            raise ValueError(f"inputs_embeds: expected shape [B,T,D], got {described(embeds)}")
        if not embeds.numel():
            raise ValueError(f"inputs_embeds: expected at least one example of one token, got {list(embeds.shape)}")
        check_length(model, embeds.shape[1], "inputs_embeds")
        ids = torch.zeros(embeds.shape[:2], dtype=torch.int64)
    valid = torch.ones(ids.shape, dtype=torch.bool)
    if attention_mask is not None:
        inputs["attention_mask"] = checked_mask(attention_mask, ids, "attention_mask")
        valid = inputs["attention_mask"].bool().cpu()
    if input_ids is not None:
        warn_without_pictures(model, ids, inputs)
    answer = None if answers is None else mask_of(answers, _ANSWERS, ids.shape).bool().cpu()
    check_unreserved({} if groups is None else check_mapping(groups, "groups"))
    if groups is None:
        keys = {} if input_ids is None else spans_of(model, ids, valid, answer)
    else:
        keys = {name: mask & valid for name, mask in masks_of(groups, torch.zeros(ids.shape).long()).items()}
    p = last_of(valid)
    queries = with_prediction(keys, p[:, None], ids.shape[1]) if keys else {}
    known = None if input_ids is None else ids
    return Given(inputs_of(inputs, None, len(ids), batch_size), valid, p, queries, keys, known)


def _of_examples(model: PreTrainedModel, examples: Examples, beside: Mapping[str, Any]) -> Given:
    check_alone(beside)
    examples = examples.read_by(model)
    ids, p = examples.input_ids, examples.lengths.cpu() - 1
    queries, keys = ({n: x.cpu() for n, x in of.items()} for of in (examples.query_masks, examples.key_masks))
    valid = torch.arange(ids.shape[1]) <= p[:, None]
    return Given(lambda at: {"input_ids": ids[at], **examples.given(at)}, valid, p, queries if keys else {}, keys, ids)
