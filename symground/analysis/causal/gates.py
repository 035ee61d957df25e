"""The gates of chosen heads, and the context manager that applies them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.models import Mixer, mixers
from symground.models.hooks import place

Heads = Collection[tuple[int, int]]


def gates_of(model: PreTrainedModel, heads: Heads | Sequence[Heads], factor: float = 0.0) -> dict[int, Tensor]:
    """layer → ``factor`` for the given heads, 1 for others: [H], or [B,H] with a collection of them per example."""
    layers = mixers(model, vision=True)
    if not layers:
        raise ValueError(f"model: {type(model).__name__} has no heads to silence")
    given = _plain(heads)
    if not isinstance(given, Collection) or isinstance(given, str):
        raise ValueError(f"heads: expected (layer, head) pairs, or a collection of pairs per example; got {heads!r}")
    items = [_plain(item) for item in given]
    per_example = bool(items) and all(isinstance(item, Collection) and not _is_pair(item) for item in items)
    sets = items if per_example else [items]
    gates = {mixer.layer: torch.ones(len(sets), mixer.heads) for mixer in layers}
    for i, pairs in enumerate(sets):
        for pair in pairs:
            layer, head = _checked(pair, layers)
            gates[layer][i, head] = factor
    for layer in (mixer.layer for mixer in layers if mixer.kind == "vision"):
        if bool((gates[layer] != gates[layer][:1]).any()):
            raise ValueError(
                f"heads: layer {layer} is of the vision tower, which reads pictures, not examples; expected the same "
                "heads of it in all examples"
            )
    one = [mixer.layer for mixer in layers if mixer.kind == "vision" or not per_example]
    return {layer: gate[0] if layer in one else gate for layer, gate in gates.items()}


def _checked(pair: Any, layers: tuple[Mixer, ...]) -> tuple[int, int]:
    if not _is_pair(pair):
        raise ValueError(f"heads: expected (layer, head) pairs, or a collection of pairs per example; got {pair!r}")
    shape = {mixer.layer: mixer.heads for mixer in layers}
    layer, head = pair
    if layer not in shape or not 0 <= head < shape[layer]:
        raise ValueError(
            f"heads: ({layer}, {head}) does not exist; the model has layers {min(shape)} to {max(shape)}"
            + (f" with {shape[layer]} heads in layer {layer}" if layer in shape else "")
        )
    return layer, head


def _plain(value: Any) -> Any:
    """Arrays and tensors as lists; an iterator as a list, since it can be read only once; other values unchanged."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, Iterator) else value


def _is_pair(item: object) -> bool:
    return (
        isinstance(item, (tuple, list))
        and len(item) == 2
        and all(isinstance(x, Integral) and not isinstance(x, bool) for x in item)
    )


class Block(AbstractContextManager[None]):
    """A context manager that opens a new block at each entry, so one object serves successive and nested blocks."""

    def __init__(self, block: Callable[[], AbstractContextManager[None]]) -> None:
        self._block, self._open = block, list[tuple[Any, AbstractContextManager[None]]]()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        block = self._block()
        block.__enter__()
        self._open.append((place(), block))

    def __exit__(self, *error: Any) -> bool | None:
        with self._lock:  # a thread without an open block of its own ends the last block of another thread
            own = [i for i, (where, _) in enumerate(self._open) if where == place()]
            _, block = self._open.pop(own[-1] if own else -1)
        return block.__exit__(*error)
