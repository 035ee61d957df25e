"""A forward pass as its model is called: how many positions a cache holds, which are words, and which are in groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from symground.analysis.checks import check_mapping, tensor_of
from symground.analysis.tracing import check_unreserved
from symground.models.hooks import CACHES, cache_of, is_encoder_decoder


def text_of(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs of the text: of an encoder-decoder, those of its decoder, by the names that a decoder alone has."""
    if not is_encoder_decoder(model):
        return inputs
    names = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")
    cache = {name: inputs.get(name) for name in CACHES}
    return cache | {name: inputs.get(f"decoder_{name}") for name in names}


class Past:
    """How many positions the caches of a block's passes hold."""

    def __init__(self) -> None:
        self._counted: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        """Of caches of Mamba-2 alone, which do not count."""

    def before(self, inputs: Mapping[str, Any]) -> int:
        """The positions before those of a pass.

        Raises:
            ValueError: the cache does not hold all of the positions that were read.
        """
        cache = cache_of(inputs)
        if cache is None:
            return 0
        try:
            past = int(cache.get_seq_length())
        except ValueError:  # of Mamba-2 alone
            if cache not in self._counted and cache.has_previous_state():
                raise ValueError(
                    f"model: a {type(cache).__name__} of Mamba-2 alone does not say how many positions it holds; "
                    "expected one that is empty when the block begins, and is given to each pass"
                ) from None
            return self._counted.get(cache, 0)
        if past:
            _check_whole(inputs, past, fixed=bool(getattr(cache, "is_compileable", False)))
        return past

    def count(self, inputs: Mapping[str, Any], positions: int) -> None:
        """A pass has read up to so many positions."""
        cache = cache_of(inputs)
        if cache is not None:
            self._counted[cache] = positions


def _check_whole(inputs: Mapping[str, Any], past: int, fixed: bool) -> None:
    """Refuse a cache from which keys were dropped: where the rest stood is not known."""
    new = next((inputs[n].shape[1] for n in ("input_ids", "inputs_embeds") if inputs.get(n) is not None), None)
    if new is None:
        return
    mask, at = inputs.get("attention_mask"), inputs.get("position_ids")
    said = mask.shape[1] if isinstance(mask, Tensor) and mask.ndim == 2 and not fixed else 0
    if isinstance(at, Tensor) and at.ndim == 2 and at.numel():
        said = max(said, int(at.max()) + 1)
    if said > past + new:
        raise ValueError(
            f"model: its cache holds {past} positions, and the mask or the positions of the pass say {said - new}: "
            "keys were dropped from it, so which position a key has is not known"
        )


def words_of(inputs: Mapping[str, Any], past: int, examples: int, queries: int) -> Tensor:
    """[N,T] bool, which positions of a pass are words, not padding; all of them where the mask does not say it."""
    mask, total = inputs.get("attention_mask"), past + queries
    if isinstance(mask, Mapping):  # of each kind of layer, for a cache of fixed size
        mask = next((x for x in mask.values() if isinstance(x, Tensor)), None)
    everything = torch.ones(examples, queries, dtype=torch.bool)
    if not isinstance(mask, Tensor):
        return everything
    if mask.ndim == 2:
        found = mask[:, past:total] if mask.shape[1] >= total else mask[:, -queries:]
        return found.bool().cpu() if found.shape == everything.shape else everything
    if mask.dtype == torch.int64 and mask.ndim == 4 and mask.shape[3] >= 2 and not past:  # of our mask function
        first, last = mask[:, 0, 0, :2].cpu().T[..., None]
        at = torch.arange(queries)
        within: Tensor = (at >= first) & (at < last)
        return within
    return everything


def named_masks(groups: Any, argument: str = "groups") -> dict[str, Tensor]:
    """Names → masks [B,P] bool of positions, in host memory.

    Raises:
        ValueError: they are not masks [B,P] of one shape, or one has the name of the prediction position.
    """
    found = {name: tensor_of(x, f"{argument}[{name!r}]") for name, x in check_mapping(groups, argument).items()}
    check_unreserved(found)
    shapes = {tuple(x.shape) for x in found.values()}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"{argument}: expected masks [B,P] of one shape, got {', '.join(map(str, sorted(shapes)))}")
    return {name: x.bool().cpu() for name, x in found.items()}


def fitted(
    masks: Mapping[str, Tensor], examples: int, positions: int, argument: str = "groups"
) -> dict[str, Tensor]:  # fmt: skip
    """Masks [B,P] for a pass over positions 0 to S: [N,S]; positions beyond P are in no group.

    Raises:
        ValueError: they are masks of another number of examples.
    """
    for name, mask in masks.items():
        if len(mask) != examples:
            raise ValueError(
                f"{argument}[{name!r}]: expected masks of the {examples} examples of the pass (with beams, of each "
                f"beam), got shape {list(mask.shape)}"
            )
    return {name: pad(mask[:, :positions], (0, max(0, positions - mask.shape[1]))) for name, mask in masks.items()}
