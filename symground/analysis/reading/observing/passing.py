"""A forward pass as its model is called: how many positions a cache holds, which are words, and which are in groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
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


def sizes_in(inputs: Mapping[str, Any]) -> tuple[int, int] | None:
    """How many texts and positions a pass reads; None if its inputs do not say it."""
    given = next((inputs[n] for n in ("input_ids", "inputs_embeds") if inputs.get(n) is not None), None)
    return (given.shape[0], given.shape[1]) if isinstance(given, Tensor) and given.ndim > 1 else None


def positions_in(inputs: Mapping[str, Any]) -> int | None:
    sizes = sizes_in(inputs)
    return None if sizes is None else sizes[1]


class _Known(NamedTuple):
    """What is known of a cache from a pass before."""

    positions: int
    """How many it held after the pass."""
    ahead: int
    """By how much its position ids were ahead of its positions: PaliGemma's begin at 1."""
    text: int
    """The number of its text."""


class Past:
    """How many positions the caches of a block's passes hold."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()
        self.text = -1
        """The number of the text of the pass that was counted last."""
        self._texts, self._uncached = 0, -1

    def before(self, inputs: Mapping[str, Any]) -> int:
        """The positions before those of a pass, which is counted.

        Raises:
            ValueError: keys were dropped from the cache, so where the rest stood is not known.
        """
        cache, new = cache_of(inputs), positions_in(inputs)
        if cache is None:
            self.text, self._texts, self._uncached = self._texts, self._texts + 1, new or 0
            return 0
        known = self._known.get(cache)
        past = _length_of(cache, known)
        ahead, mask = _ahead(inputs, past + (new or 0)), inputs.get("attention_mask")
        said = mask.shape[1] if isinstance(mask, Tensor) and mask.ndim == 2 else 0
        # A mask may be as long as the text will be, and a cache may be cut to go on from an earlier position.
        shrunk = known is not None and past < known.positions and new is not None and said > past + new
        if past and (shrunk or ahead > (0 if known is None else known.ahead)):
            raise _dropped(f"holds {past} positions, and the mask or the positions of the pass say more")
        if known is not None and past:
            self.text = known.text
        elif not past or past != self._uncached:  # else of a cache that the pass before has made
            self.text, self._texts = self._texts, self._texts + 1
        self._uncached = -1
        if new is not None:
            ahead = max(0, ahead) if not past or known is None else known.ahead
            self._known[cache] = _Known(past + new, ahead, self.text)
        return past


def _length_of(cache: Any, known: _Known | None) -> int:
    """How many positions a cache holds; one of Mamba-2 alone does not count them."""
    try:
        past = int(cache.get_seq_length())
    except ValueError:
        if known is None and cache.has_previous_state():
            raise ValueError(
                f"model: a {type(cache).__name__} of Mamba-2 alone does not say how many positions it holds; expected "
                "one that is empty when the block begins, and is given to each pass"
            ) from None
        return 0 if known is None else known.positions
    of_layers = set()
    for layer in getattr(getattr(cache, "self_attention_cache", cache), "layers", ()):
        if hasattr(layer, "get_seq_length"):
            of_layers.add(int(layer.get_seq_length()))
    of_layers -= {0}  # layers that hold nothing yet, or take another layer's keys
    if len(of_layers) > 1:
        raise _dropped(f"holds {min(of_layers)} positions in one layer and {max(of_layers)} in another")
    return past


def _ahead(inputs: Mapping[str, Any], total: int) -> int:
    """By how much the position ids of a pass go beyond its positions; at most 0 where they are not given."""
    at = inputs.get("position_ids")
    return int(at.max()) + 1 - total if isinstance(at, Tensor) and at.ndim == 2 and at.numel() else 0


def _dropped(how: str) -> ValueError:
    return ValueError(f"model: its cache {how}: keys were dropped from it, so which position a key has is not known")


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
    if mask.ndim == 4 and (mask.dtype == torch.bool or mask.is_floating_point()) and mask.shape[3] >= total:
        shown = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        found = shown.any(1).any(1)[:, past:total].cpu()  # of all pairs: what no query sees is padding
        return found.expand(everything.shape) if bool(found.any(-1).all()) else everything
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
