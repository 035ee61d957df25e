"""The inputs of a trace as one record, built from ids or from examples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.checks import check_mapping, ids_of, mask_of, tensor_of, texts_of
from symground.analysis.probing import Examples, Targets, check_asked, targets_at, targets_of_span
from symground.models.attachment import untraced
from symground.models.trials import readout

PREDICTION = "prediction"


#: The keywords of `trace`, one of which an error may suggest.
KEYWORDS = (
    "targets", "attention_mask", "groups", "span", "per_token", "prompt", "answer", "tokenizer", "max_new_tokens",
    "source_groups", "loss", "saliency", "rows", "batch_size", "checkpoint", "offload",
)  # fmt: skip


#: Layers that are not traced and carry what lies before a text into it, padding too.
_READ_PADDING = frozenset({"RecurrentGemmaRglru"})


class TraceInput(NamedTuple):
    """N examples of T tokens with their targets."""

    ids: Tensor
    """[N,T]"""
    valid: Tensor
    """[N,T] bool, False at padding."""
    targets: Targets
    query_names: list[str]
    query_groups: Tensor
    """[N,T] index of each position's query group; -1 is in no group."""
    key_names: list[str]
    key_groups: Tensor
    """[N,T] index of each position's key group; -1 is in no group."""
    inputs: Callable[[slice], Mapping[str, Any]]
    """Further inputs of the model for a part of the examples."""
    lengths: Tensor
    """[N] number of valid tokens of each."""
    width: int | None
    """Number of positions that the model reads as text; None: the valid tokens."""
    labels: Mapping[str, tuple[str, list[Any]]]
    """Further coordinates of the examples."""


def of_examples(model: PreTrainedModel, examples: Examples, beside: Mapping[str, Any]) -> TraceInput:
    """The inputs of examples, which have their own targets, groups and model inputs; ``beside`` must be all None."""
    check_alone(beside)
    examples, ids = examples.read_by(model), examples.input_ids
    return TraceInput(
        ids,
        torch.arange(ids.shape[1]) < examples.lengths[:, None],
        examples.wanted,
        list(examples.query_masks),
        group_ids(examples.query_masks, ids),
        list(examples.key_masks),
        group_ids(examples.key_masks, ids),
        examples.given,
        lengths=examples.lengths,
        width=ids.shape[1],
        labels={"context": ("example", examples.context), "noun": ("example", examples.noun)},
    )


def check_alone(beside: Mapping[str, Any]) -> None:
    """Refuse what is given beside examples, which have it themselves."""
    name = next((name for name, value in beside.items() if value is not None), None)
    if name is not None:
        raise ValueError(f"{name}: probes and questions contain their own {name}; leave it out")


def of_ids(
    model: PreTrainedModel,
    input_ids: Any,
    targets: Any,
    span: Any,
    attention_mask: Any,
    groups: Mapping[str, Any] | None,
    model_inputs: Mapping[str, Any],
    batch_size: int,
) -> TraceInput:
    """The inputs of ids [N,T] (a tensor, an array or lists) with their arguments; see :func:`symground.trace`."""
    check_one_of(targets, span)
    if input_ids is None:
        raise ValueError("input_ids: expected ids [B,T], probes or questions about images, got None")
    if isinstance(input_ids, Mapping):
        raise ValueError(
            "input_ids: expected ids [B,T], got inputs by name; they are keywords: symground.trace(model, **inputs, …)"
        )
    if isinstance(input_ids, str) or not hasattr(input_ids, "__len__"):
        check_asked(input_ids, "input_ids", images=True)
    ids = texts_of(model, input_ids, "input_ids")
    if attention_mask is not None:
        attention_mask = checked_mask(attention_mask, ids, "attention_mask")
    valid = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    reads = _READ_PADDING.intersection(untraced(model))
    if reads and not bool(valid[:, 0].all()):
        raise ValueError(
            f"attention_mask: {type(model).__name__} reads padding on the left by its {', '.join(reads)}, which "
            "transformers does not tell of the mask; expected padding on the right"
        )
    wanted = wanted_of(targets, span, ids, valid, readout(model).weight.shape[0])
    groups = image_group(model, ids) if groups is None else groups
    check_unreserved(check_mapping(groups, "groups"))
    keys = {name: mask & valid for name, mask in masks_of(groups, ids).items()}
    queries = with_prediction(keys, wanted.positions, ids.shape[1])
    warn_without_pictures(model, ids, model_inputs)
    inputs = inputs_of(model_inputs, attention_mask, len(ids), batch_size)
    return TraceInput(
        ids,
        valid,
        wanted,
        list(queries),
        group_ids(queries, ids),
        list(keys),
        group_ids(keys, ids),
        inputs,
        lengths=valid.sum(-1),
        width=None if attention_mask is not None else ids.shape[1],
        labels={},
    )


def inputs_of(
    given: Mapping[str, Any], attention_mask: Any, examples: int, batch_size: int
) -> Callable[[slice], dict[str, Any]]:
    """Inputs of the model for a part of the examples: of tensors of so many, that part; others whole."""
    whole = {**given, **({} if attention_mask is None else {"attention_mask": attention_mask})}
    for name, value in whole.items():
        if isinstance(value, Tensor) and value.ndim and len(value) != examples and examples > batch_size:
            raise ValueError(
                f"{name}: expected its first dimension to be that of {examples} examples to make batches of "
                f"{batch_size}, got shape {list(value.shape)}; a larger batch_size takes it whole"
            )

    def of_part(at: slice) -> dict[str, Any]:
        return {
            n: value[at] if isinstance(value, Tensor) and value.ndim and len(value) == examples else value
            for n, value in whole.items()
        }

    return of_part


def targets_of(targets: Any, ids: Tensor, words: int) -> Tensor:
    """The targets [B] of ids [B,T], of a vocabulary of so many words."""
    wanted = ids_of(targets, "targets", 1, words).to(ids.device)
    if len(wanted) != len(ids):
        raise ValueError(f"targets: expected shape [B] = [{len(ids)}], got {list(wanted.shape)}")
    return wanted


def checked_mask(mask: Any, ids: Tensor, name: str) -> Tensor:
    """A mask [B,T] of the valid tokens of ids; ``name`` is the argument's."""
    found = mask_of(mask, name, ids.shape).to(ids.device)
    if not bool(found.any(-1).all()):
        raise ValueError(f"{name}: expected at least one valid token in every example")
    holes = (found[:, 1:].bool() & ~found[:, :-1].bool()).sum(-1) + found[:, 0].bool()
    wrong = (holes > 1).nonzero()[:, 0].tolist()
    if wrong:
        raise ValueError(
            f"{name}: expected the valid tokens of each example to be contiguous (padding at the ends only); example "
            f"{wrong[0]} has padding between its tokens"
        )
    return found


def last_of(valid: Tensor) -> Tensor:
    """p [B], the last True of each row [B,T]."""
    return (valid * torch.arange(valid.shape[1], device=valid.device)).amax(-1)


def check_one_of(targets: Any, span: Any) -> None:
    """Refuse both or neither of the arguments that say what is predicted."""
    if targets is None and span is None:
        raise ValueError("targets: expected the ids [B] to predict, or a span of the text; got None")
    if targets is not None and span is not None:
        raise ValueError("span: expected None with targets, since a span has the text's own tokens as targets")


def wanted_of(targets: Any, span: Any, ids: Tensor, valid: Tensor, words: int, name: str = "input_ids") -> Targets:
    """The targets after ids [B,T], or the tokens of a span of them; ``words`` is the size of the vocabulary.

    Raises:
        ValueError: a span of other ids than the vocabulary's, of no token, or with one that nothing stands before.
    """
    if span is None:
        return targets_at(last_of(valid), targets_of(targets, ids, words))
    found = mask_of(span, "span", ids.shape).to(ids.device).bool()
    if not bool(found.any(-1).all()):
        raise ValueError(f"span: expected at least one token of {name} in each example, got one without any")
    if bool((found & ~valid).any()):
        raise ValueError("span: expected valid tokens, got one where the attention mask is 0")
    before = torch.cat([torch.zeros_like(valid[:, :1]), valid[:, :-1]], 1)
    if bool((found & ~before).any()):
        raise ValueError(
            "span: expected tokens that another stands before, by which they are predicted; got the first of a text"
        )
    beyond = ids[found & (ids >= words)]
    if len(beyond):
        raise ValueError(f"span: expected ids below {words}, the vocabulary that is predicted, got {int(beyond[0])}")
    return targets_of_span(ids, found)


def with_prediction(keys: Mapping[str, Tensor], positions: Tensor, length: int) -> dict[str, Tensor]:
    """The query groups: the prediction positions [B,R] alone, and the key groups [B,T] without them."""
    at_p = Targets(positions, positions).mask(length)
    return {PREDICTION: at_p, **{name: mask & ~at_p for name, mask in keys.items()}}


def check_unreserved(groups: Mapping[str, Any]) -> None:
    if PREDICTION in groups:
        raise ValueError(f"groups: {PREDICTION!r} is the prediction position itself; choose another name")


def group_ids(masks: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """[B,T], as ``like``: index of the mask that contains each position; -1 if none does."""
    if not masks:
        return torch.full_like(like, -1)
    stacked = torch.stack([mask.bool() for mask in masks.values()])
    if bool((stacked.sum(0) > 1).any()):
        raise ValueError(f"groups: expected masks that do not overlap, got an overlap among {', '.join(masks)}")
    return torch.where(stacked.any(0), stacked.int().argmax(0), -1)


def image_group(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    """{"image": [B,T] mask of the placeholders of images}; empty if the model or the ids have no such token."""
    token = getattr(model.config, "image_token_id", None)
    places = None if token is None else ids == token
    return {} if places is None or not bool(places.any()) else {"image": places}


def warn_without_pictures(model: PreTrainedModel, ids: Tensor, given: Mapping[str, Any]) -> None:
    """Warn of placeholders of images in ids [B,T] if no input of the model is made of images.

    The model embeds them like words then, without a word.
    """
    places = image_group(model, ids).get("image")
    pictures = [name for name, x in given.items() if x is not None and ("pixel" in name or "image" in name)]
    if places is not None and not pictures:
        warnings.warn(
            f"input_ids: {int(places.sum())} tokens are placeholders of images, and no images are given; "
            f"{type(model).__name__} reads the placeholders themselves",
            UserWarning,
            stacklevel=4,
        )


def masks_of(groups: Mapping[str, Any], like: Tensor, argument: str = "groups") -> dict[str, Tensor]:
    """The masks of groups as bool tensors of the shape and device of ``like`` [B,T]; ``argument`` is their name."""
    found = {}
    for name, given in check_mapping(groups, argument).items():
        mask = tensor_of(given, f"{argument}[{name!r}]")
        if mask.shape != like.shape:
            raise ValueError(f"{argument}[{name!r}]: expected shape {list(like.shape)}, got {list(mask.shape)}")
        found[name] = mask.bool().to(like.device)
    return found
