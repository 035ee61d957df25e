"""The mask function of ``attn_implementation="symground"``, and how a layer's mask is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import masking_utils
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from symground.models.architectures.pairs import of_seen, range_of_pairs, seen_pairs
from symground.ops.attention.mixing import key_range_of
from symground.ops.common import checks as check

_OTHER_MASK = (
    "attention_mask: symground supports masks that are causal or show all positions, with or without a sliding window, "
    "with padding, packed texts, chunks and blocks"
)
NAME = "symground"
UNPADDED = "symground-unpadded"


def key_range_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor:
    """The mask as key ranges [B,1,1+W,2]: first and one-past-last valid key of each example.

    The mask has four dimensions because transformers passes such a mask on unchanged, and int64 tells it from others.
    W is the sliding window, or 0 if none hides a key. With a key-value cache of fixed size the last dimension is 3, and
    the third number is how many keys are in use. If all keys are valid, the last dimension is 0: even then the mask
    says whether it is causal, which layers say otherwise (PaliGemma's). Where ids say which keys a query sees, the
    segments and the blocks of the S keys, as `ops.attention` takes them, come after these two or three numbers. The
    numbers of an example are stored once. In a mask that is not causal the second dimension is 2, and its window shows
    the W - 1 positions on either side.

    Raises:
        ValueError: the mask is none of these: of all keys, or causal, with or without a window, with padding at the
            ends only; texts packed into a row, or chunks; blocks whose positions see each other.
    """
    shows, window = None, kwargs.get("local_size")
    if torch.compiler.is_compiling() and window is not None:
        shows = _configured(kwargs["config"], window, attention_mask, batch_size, device)
    if shows is not None:  # that the model's function shows the same is asserted
        query, key = (torch.arange(n, device=device) + of for n, of in ((q_length, q_offset), (kv_length, kv_offset)))
        example = torch.arange(batch_size, device=device)[:, None, None]
        pairs = mask_function(example, torch.zeros_like(example), query[:, None], key)
        torch._assert_async((pairs == shows.pairs(query, key)).all(), _OTHER_MASK)
    else:
        shows = _shown(mask_function, kv_length)
    if shows is None and window is not None and not _part(mask_function)[0]:
        # Ids may hide what a trial does not reach, so it is for functions that transformers did not put together.
        shows = Shown(True, window) if _is_window(mask_function, window, q_length, kv_length) else None
    if shows is None:
        raise ValueError(f"{_OTHER_MASK}; this model asks for another")
    window = shows.window
    found = None if attention_mask is None else key_range_of(attention_mask[:, kv_offset : kv_offset + kv_length])
    used = q_offset + q_length - kv_offset
    if shows.causal and (isinstance(used, Tensor) or used != kv_length):
        used = torch.as_tensor(used, device=device).expand(batch_size)
        first, last = (torch.zeros_like(used), used) if found is None else found.unbind(-1)
        found = torch.stack([first, torch.minimum(last, used), used], -1)
    hides = 0 if window is None or window >= kv_length else int(window)
    if shows.segments is not None or shows.blocks is not None:
        if found is None:
            found = torch.tensor([[0, kv_length]], device=device).expand(batch_size, -1)
        at = torch.arange(kv_offset, kv_offset + kv_length, device=device)
        segments = torch.zeros_like(at)[None] if shows.segments is None else shows.segments(at)
        blocks = torch.full_like(at, -1)[None] if shows.blocks is None else shows.blocks(at)
        found = torch.cat([found, *(ids.expand(batch_size, -1) for ids in (segments, blocks))], 1)
    if found is None:
        found = torch.empty(batch_size, 0, dtype=torch.int64, device=device)
    return found[:, None, None].expand(-1, 1 if shows.causal else 2, 1 + hides, -1)


class Shown(NamedTuple):
    """The keys that a mask function shows, causal or all, within a window, and which ids show more or fewer.

    A window shows the keys whose distance to the query is less than it.
    An id is a function of the positions [P] of keys → [B or 1,P].
    """

    causal: bool = True
    window: int | None = None
    segments: Callable[[Tensor], Tensor] | None = None
    blocks: Callable[[Tensor], Tensor] | None = None

    def pairs(self, query: Tensor, key: Tensor) -> Tensor:
        """[B or 1,T,S] whether queries at these positions see keys at those; causal, without blocks."""
        at = query[:, None]
        seen = (key <= at)[None]
        if self.window is not None:
            seen = seen & (key > at - self.window)
        return (
            seen if self.segments is None else seen & (self.segments(query)[..., None] == self.segments(key)[:, None])
        )


def _configured(
    config: Any, size: int, attention_mask: Tensor | None, batch: int, device: torch.device | str
) -> Shown | None:
    """The window or chunks of this size that a configuration says; a graph cannot ask what a mask function encloses."""
    if size == getattr(config, "sliding_window", None):
        return Shown(True, size)
    if size != getattr(config, "attention_chunk_size", None):
        return None
    none = torch.zeros(batch, dtype=torch.int64, device=device)
    left = none if attention_mask is None else (attention_mask.cumsum(-1) == 0).sum(-1)
    return Shown(segments=_chunks(size, left))


def _shown(function: Any, keys: int) -> Shown | None:
    """What a mask function that transformers put together shows ``keys``; None if it is put together in another way.

    Its parts are known by their names in transformers, and what they are made of by what they enclose.
    """
    if function in (causal_mask_function, bidirectional_mask_function):
        return Shown(function is causal_mask_function)
    kind, enclosed = _part(function)
    if kind == "remap_positions_for_packed_sequence":
        # Within a text, positions counted from its start are as far apart as those of the row.
        base = _shown(enclosed["mask_function"], keys)
        if base is None or base.blocks is not None:
            return None
        chunks, positions = base.segments, enclosed["position_ids"]
        return base if chunks is None else base._replace(segments=lambda at: chunks(positions[:, at]))
    if kind not in ("and_masks", "or_masks"):
        return None
    bases, overlays = [], []
    for part in enclosed["mask_functions"]:
        found = _shown(part, keys)
        overlays.append(part) if found is None else bases.append(found)
    if len(bases) != 1:
        return None
    shown = bases[0]
    for overlay in overlays:
        name, of = _part(overlay)
        near = _near(overlay, keys) if kind == "or_masks" and not name else None
        if kind == "or_masks" and name == "blockwise_overlay" and shown.segments is shown.blocks is None:
            shown = shown._replace(blocks=_looked_up(of["block_sequence_ids"]))
        elif kind == "and_masks" and name == "sliding_window_overlay" and shown == Shown(blocks=shown.blocks):
            window = int(of["sliding_window"])
            shown = Shown(True, window, blocks=None if shown.blocks is None else _within(shown.blocks, window))
        elif kind == "and_masks" and name == "sliding_window_bidirectional_overlay" and shown == Shown(False):
            shown = Shown(False, int(of["sliding_window"]) + 1)
        elif kind == "and_masks" and name == "packed_sequence_mask_function":
            shown = shown._replace(segments=_within_both(shown.segments, _looked_up(of["packed_sequence_mask"])))
        elif kind == "and_masks" and name == "chunked_overlay" and shown == Shown(segments=shown.segments):
            shown = Shown(segments=_within_both(shown.segments, _chunks(of["chunk_size"], of["left_padding"])))
        elif near is not None and shown == Shown(window=shown.window) and near >= min(shown.window or keys, keys):
            shown = Shown(False, None if near >= keys else near)
        else:
            return None
    return shown


def _part(function: Any) -> tuple[str, dict[str, Any]]:
    """The name of transformers' function that made this mask function, or "", and what it encloses."""
    if (
        getattr(function, "__module__", None) != masking_utils.__name__
        or getattr(function, "__closure__", None) is None
    ):
        return "", {}
    return function.__qualname__.partition(".")[0], dict(inspect.getclosurevars(function).nonlocals)


def _chunks(size: int, left_padding: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda at: (at - left_padding[:, None]).div(size, rounding_mode="floor")


def _within(blocks: Callable[[Tensor], Tensor], window: int) -> Callable[[Tensor], Tensor]:
    """The blocks, after a check that a window which holds for them too hides no position of a block from another."""

    def checked(at: Tensor) -> Tensor:
        ids = blocks(at)
        slot, place = ids.clamp(max=len(at)) + 1, torch.arange(len(at), device=at.device).expand_as(ids)
        none = torch.zeros(len(ids), len(at) + 2, dtype=torch.int64, device=at.device)
        first = (none + len(at)).scatter_reduce(1, slot, place, "amin")
        last = (none - 1).scatter_reduce(1, slot, place, "amax")
        message = f"attention_mask: expected blocks that fit into the sliding window of {window} keys"
        check.values((last - first)[:, 1:] < window, message, last[:, 1:])
        return ids

    return checked


def _within_both(
    segments: Callable[[Tensor], Tensor] | None, more: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Segments within which both ids are equal."""
    return more if segments is None else lambda at: (segments(at) << 32) + more(at)


def _near(overlay: Any, keys: int) -> int | None:
    """The distance below which an overlay of a model's own shows each of ``keys`` to each other; None if it is none.

    It is tried at the first, the middle and the last query, each of another example and head. It encloses no more than
    numbers, so that an example cannot hide others from it.
    """
    try:
        enclosed = [*inspect.getclosurevars(overlay).nonlocals.values(), *(overlay.__defaults__ or ())]
    except (AttributeError, TypeError):
        return None
    if not all(isinstance(x, (bool, int, float)) for x in enclosed):
        return None
    at, found = torch.arange(keys), set()
    for row, query in enumerate((0, keys // 2, keys - 1)):
        try:
            shown = overlay(torch.tensor(row), torch.tensor(row), torch.tensor(query), at)
        except Exception:
            return None
        if not isinstance(shown, Tensor) or shown.dtype != torch.bool:
            return None
        distance, shown = (at - query).abs(), shown.expand(keys)
        reach = int(distance[shown].max()) + 1 if bool(shown.any()) else 0
        if not torch.equal(shown, distance < reach):
            return None
        found.add(reach if reach <= int(distance.max()) else keys)
    return min(found) if len(found - {keys}) <= 1 else None


def _looked_up(ids: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda at: ids[:, at].long()


def _is_window(mask_function: Any, window: int, queries: int, keys: int) -> bool:
    """Whether each query sees exactly its last ``window`` keys, by a trial around the two edges of the mask."""
    at = torch.arange(min(max(queries, keys), 64) + 1)
    query, key = (at + window)[:, None], torch.cat([at + window, at])[None]
    try:
        found = mask_function(torch.tensor(0), torch.tensor(0), query, key)
    except Exception:  # for example, a mask function that indexes the batch
        return False
    expected = (key <= query) & (key > query - window)
    return isinstance(found, Tensor) and torch.equal(found.expand_as(expected), expected)


class Mask(NamedTuple):
    """What a layer's mask says."""

    key_range: Tensor | None = None
    """[B,2]"""
    in_use: Tensor | None = None
    """How many keys are in use, if the key-value cache has a fixed size."""
    segments: Tensor | None = None
    """[B,S]"""
    blocks: Tensor | None = None
    """[B,S]"""
    window: int | None = None
    """Keys at a smaller distance are seen; those after the query too if the mask is not causal."""
    causal: bool | None = None
    """None if the layer says it."""
    all_keys: Tensor | None = None
    """[B,T] queries that see all keys, whatever the key range is."""


def read(module: nn.Module, mask: Tensor | None, query: Tensor, key: Tensor, causal: bool, window: int | None) -> Mask:
    """What a layer's mask says, as `key_range_mask` or transformers made it.

    As in transformers' eager attention, the mask decides. ``causal`` and ``window`` are what the layer says.

    Raises:
        ValueError: a causal mask has another window than the layer passes, the window of a layer that passes none is
            needed, or symground does not support the mask.
    """
    if mask is not None and not _is_key_range(mask, key.shape[2]):
        if not causal and query.shape[2] != key.shape[2]:
            return _of_crossing(mask, query, key)
        if not hasattr(module, "is_causal"):
            shown = of_seen(seen_pairs(mask, query, key))
            if shown is not None and shown.key_range is not None and shown.window == window:
                segments = None if shown.segments is None else shown.segments.expand(len(query), -1)
                key_range = shown.key_range.expand(len(query), -1)
                return Mask(key_range, segments=segments, window=window, causal=shown.causal)
        return Mask(range_of_pairs(mask, query, key, causal, window), window=window)
    config = getattr(module, "config", None)
    if getattr(config, "_attn_implementation", None) == UNPADDED:
        unsaid = getattr(config, "sliding_window", None)
        if window is None and unsaid and unsaid < key.shape[2]:
            raise ValueError(
                f"model: no mask was made, and {type(module).__name__} does not tell its attention function whether it "
                f"has the sliding window of {unsaid} keys; expected a model that is not compiled"
            )
        return Mask(window=window)
    meant = 0 if mask is None else mask.shape[2] - 1
    if (mask is None or mask.shape[1] == 1) and window is not None and meant != window:
        in_mask = f"a sliding window of {meant} keys" if meant else "no sliding window"
        raise ValueError(
            f"model: its attention mask has {in_mask}, and {type(module).__name__} tells the attention function of a "
            f"sliding window of {window} keys; symground does not support this model: "
            "model.set_attn_implementation('sdpa')"
        )
    if mask is None:
        return Mask()
    said = Mask(window=meant or None, causal=mask.shape[1] == 1)
    if not mask.shape[3]:
        return said
    if len(mask) != len(query):
        raise ValueError(f"attention_mask: expected {len(query)} examples, got {len(mask)}")
    found = mask[:, 0, 0]
    said = said._replace(key_range=found[:, :2], in_use=found[0, 2] if found.shape[1] % 2 else None)
    if found.shape[1] <= 3:
        return said
    segments, blocks = found[:, -2 * key.shape[2] :].chunk(2, 1)
    return said._replace(segments=segments, blocks=blocks)


def _is_key_range(mask: Tensor, keys: int) -> bool:
    """Whether a mask has the form that `key_range_mask` returns."""
    widths = (0, 2, 3, 2 + 2 * keys, 3 + 2 * keys)
    return mask.dtype == torch.int64 and mask.ndim == 4 and mask.shape[1] <= 2 and mask.shape[3] in widths


def _of_crossing(mask: Tensor, query: Tensor, key: Tensor) -> Mask:
    """A mask of all pairs of queries and other positions: all queries see one range of keys, or all of them.

    In Llama-3.2-Vision, words before an image see all of its tiles, and those after it its own tiles alone.

    Raises:
        ValueError: the mask is another one, or biases scores.
    """
    seen = seen_pairs(mask, query, key)
    all_keys = seen.all(-1)  # [B,H,T]
    some = (seen & ~all_keys[..., None]).flatten(1, 2).any(1)  # [B,S] what the other queries see
    found = key_range_of(some).expand(len(query), -1)
    keys = torch.arange(key.shape[2], device=mask.device)
    of_others = (keys >= found[:, :1]) & (keys < found[:, 1:])  # [B,S]
    if not bool(((seen == of_others[:, None, None]) | all_keys[..., None]).all()) or seen.shape[1] != 1:
        raise ValueError(
            f"attention_mask: symground supports cross-attention in which each query sees all keys, or those of one "
            f"range of the example, and this mask of shape {list(mask.shape)} hides other pairs; "
            "model.set_attn_implementation('sdpa') computes it untraced"
        )
    if bool(all_keys.all()):
        return Mask()
    return Mask(found, all_keys=all_keys[:, 0].expand(len(query), -1) if bool(all_keys.any()) else None)
