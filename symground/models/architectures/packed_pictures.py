"""Vision towers that read the patches of all pictures in one row (Qwen-VL's, and those that are built like them).

Such a tower calls its attention function once for each picture, or for each window of one, unless its implementation is
named like a flash attention: then once for the whole row, with the boundaries. Its pictures are then the examples of
one call of `ops.attention`, and windows are segments of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, PreTrainedModel

from symground.models.architectures.attention import attend
from symground.ops.attention.mixing import Mixing

#: transformers looks for "flash" in the name.
PACKED = "symground-flash"
#: The towers whose patches are known to be in the order of `_places`, by the beginning of their classes' names.
_IN_BLOCKS = ("Qwen", "Glm", "Exaone4_5")


def is_packed(module: nn.Module) -> bool:
    """Whether an attention module is told the boundaries of pictures in a row of patches."""
    return "cu_seqlens" in inspect.signature(type(module).forward).parameters


def packed_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    picture_lengths: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over the patches of all pictures [1,H,N,D] → [1,N,H,D].

    ``cu_seq_lens_q`` [K+1] are the boundaries of the parts whose patches see each other. ``picture_lengths`` are the
    numbers of patches of the pictures, each of one or more parts; None: each part is a picture. The tap's examples are
    the pictures, padded to the longest of them.

    Raises:
        ValueError: the layer passes a mask or no boundaries.
    """
    if attention_mask is not None or cu_seq_lens_q is None or len(query) != 1:
        raise ValueError(
            f"model: expected {type(module).__name__} to mix patches in one row by the boundaries of pictures, got "
            f"queries of shape {list(query.shape)}" + ("" if attention_mask is None else " and a mask")
        )
    parts = (cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist()
    pictures = parts if picture_lengths is None else list(picture_lengths)
    count, longest = len(pictures), max(pictures)
    at = torch.cat([n * longest + torch.arange(length) for n, length in enumerate(pictures)]).to(query.device)  # [N]

    def rows(x: Tensor) -> Tensor:
        """[1,H,N,D] → [pictures,H,longest,D]"""
        wide = x.new_zeros(x.shape[1], count * longest, x.shape[3]).index_copy(1, at, x[0])
        return wide.view(x.shape[1], count, longest, x.shape[3]).transpose(0, 1)

    key_range = segments = None
    if min(pictures) < longest:
        key_range = torch.tensor([[0, length] for length in pictures], device=query.device)
    if len(parts) != count:
        ids = torch.arange(len(parts)).repeat_interleave(torch.tensor(parts)).to(query.device)
        segments = torch.full((count * longest,), -1, device=query.device).index_copy(0, at, ids).view(count, longest)
    mixing = Mixing(causal=False, scale=scaling, key_range=key_range, segments=segments)
    mixed = attend(module, rows(query), rows(key), rows(value), mixing, dropout)
    return mixed.flatten(0, 1)[at][None], None


def pack(tower: PreTrainedModel, layers: Sequence[nn.Module]) -> tuple[RemovableHandle, ...]:
    """Let the layers of a tower call `packed_forward`, and tell them by a hook how many patches each picture has."""
    AttentionInterface.register(PACKED, packed_forward)
    layer: Any
    for layer in layers:
        layer.config._attn_implementation_internal = PACKED  # its setter would look for the package flash-attn
    kinds = [x.kind for x in inspect.signature(type(tower).forward).parameters.values()]
    if not layers or inspect.Parameter.VAR_KEYWORD not in kinds:
        return ()

    def tell(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        grid = _grid(module, args, kwargs)
        return args, kwargs if grid is None else {**kwargs, "picture_lengths": tuple(grid.prod(-1).tolist())}

    return (tower.register_forward_pre_hook(tell, with_kwargs=True),)


@contextmanager
def grids_of(tower: nn.Module | None) -> Iterator[list[Tensor]]:
    """A list of the grids [pictures,3] (frames, rows, columns of patches) that a tower is given within the block."""
    found: list[Tensor] = []
    if tower is None:
        yield found
        return

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grid = _grid(module, args, kwargs)
        if grid is not None:
            found.append(grid)

    handle = tower.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def _grid(tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    given = inspect.signature(type(tower).forward).bind_partial(tower, *args, **kwargs).arguments
    grids = [x for name, x in given.items() if "grid" in name and isinstance(x, Tensor) and x.ndim == 2]
    return grids[0] if grids else None


def places_in_grids(tower: Any, grids: Tensor, longest: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[pictures, longest, 3] frame, row and column of each patch in its picture; -1 where unknown and in padding.

    The order is that in which the layers mix the patches: blocks of neighbours that the tower merges, and in a tower
    with windows (Qwen2.5-VL), the blocks of a window one after the other.
    """
    found = np.full((len(grids), longest, 3), -1)
    if not type(tower).__name__.startswith(_IN_BLOCKS):
        return found
    merge = tower.config.spatial_merge_size
    window = 0
    if hasattr(tower.config, "fullatt_block_indexes"):
        window = tower.config.window_size // merge // tower.config.patch_size
    for n, (frames, rows, columns) in enumerate(grids.tolist()):
        frame, row, column = np.indices((frames, rows // merge, columns // merge)).reshape(3, -1)
        if window:
            order = np.lexsort((column % window, row % window, column // window, row // window, frame))
            frame, row, column = frame[order], row[order], column[order]
        down, right = np.indices((merge, merge)).reshape(2, -1)
        each = np.stack(
            np.broadcast_arrays(frame[:, None], row[:, None] * merge + down, column[:, None] * merge + right), -1
        ).reshape(-1, 3)
        found[n, : len(each)] = each
    return found
