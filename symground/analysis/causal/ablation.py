"""Silencing heads: a context manager that leaves the model as it found it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.causal.fills import Reference, check_fills, fills_of
from symground.models import Mixer, mixers
from symground.models.hooks.scopes import place
from symground.models.passes.gating import gated

Heads = Collection[tuple[int, int]]


def ablate(
    model: PreTrainedModel,
    heads: Heads | Sequence[Heads],
    mode: str = "zero",
    reference: Reference | None = None,
    *,
    positions: Tensor | None = None,
) -> AbstractContextManager[None]:
    """A context: within its block, the given heads' outputs are replaced before the output projection.

    Args:
        model: attached.
        heads: (layer, head) pairs for all examples, or a collection of pairs for each example of the batch.
        mode: what replaces them: "zero", the study's; "mean", the head's mean output over the reference; "resample",
            its output at the same position of the reference, which then has the shape of the batch.
        reference: for "mean" and "resample": ids [N,T], a mapping of model inputs (``input_ids`` and perhaps
            ``attention_mask``), or probes: the mean over their matched examples, or what their matched examples
            resample from the mismatched ones. Read when the block is entered, as the model is then.
        positions: [T] or [B,T] bool, of the forward passes in the block: silence at these positions only.

    Blocks add up, each after those that were entered before it, in whatever order they end; what a block asks ends with
    it, after an exception too. A context can be entered again. The block holds for the passes of the thread that
    entered it (in asyncio: of the task, and of those that it starts meanwhile). A trace within the block carries the
    gates. In text generation with a cache, only the new tokens pass through the block: use no ``positions`` and no
    "resample" there.

    Raises:
        ValueError: a layer or head that does not exist, a model without heads, an unknown mode, a reference that does
            not fit. Forward passes within the block are refused where their batch has another size than the sets,
            where positions have another shape, or what is resampled.

    Source: arXiv 2510.13796 (outputs of the identified heads set to zero); Wang et al. 2023, "Interpretability in the
    wild" (mean ablation); Chan et al. 2022, "Causal scrubbing" (resampling).
    """
    gates = gates_of(model, heads)
    check_fills(mode, reference)
    return _Ablation(lambda: gated(model, gates, fills_of(model, mode, reference), positions))


def steer(model: PreTrainedModel, heads: Heads | Sequence[Heads], factor: float) -> AbstractContextManager[None]:
    """A context: within its block, the given heads' outputs are multiplied before the output projection.

    Args:
        model: attached.
        heads: (layer, head) pairs for all examples, or a collection of pairs for each example of the batch.
        factor: above 1 amplifies, 0 silences. It holds for whatever passes through the block: single passes, text
            generation with or without a cache, traces.

    Blocks add up and end as those of :func:`symground.ablate` do.

    Raises:
        ValueError: a layer or head that does not exist, a model without heads, or a factor that is not finite.
    """
    if not math.isfinite(factor):
        raise ValueError(f"factor: expected a finite number, got {factor}")
    gates = gates_of(model, heads, factor)
    return _Ablation(lambda: gated(model, gates))


class _Ablation(AbstractContextManager[None]):
    """Enters a new block each time, so that one object serves blocks after each other and within each other."""

    def __init__(self, block: Callable[[], AbstractContextManager[None]]) -> None:
        self._block, self._open = block, list[tuple[Any, AbstractContextManager[None]]]()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        block = self._block()
        block.__enter__()
        self._open.append((place(), block))

    def __exit__(self, *error: Any) -> bool | None:
        with self._lock:  # a block that was entered elsewhere is ended where nothing of one's own is open
            own = [i for i, (where, _) in enumerate(self._open) if where == place()]
            _, block = self._open.pop(own[-1] if own else -1)
        return block.__exit__(*error)


def gates_of(model: PreTrainedModel, heads: Heads | Sequence[Heads], factor: float = 0.0) -> dict[int, Tensor]:
    """layer → ``factor`` for the given heads, 1 for others: [H], or [B,H] with a collection of them per example."""
    layers = mixers(model)
    if not layers:
        raise ValueError(f"model: {type(model).__name__} has no heads to silence")
    items = [_plain(item) for item in _plain(heads)]
    per_example = bool(items) and all(isinstance(item, Collection) and not _is_pair(item) for item in items)
    sets = items if per_example else [items]
    gates = {mixer.layer: torch.ones(len(sets), mixer.heads) for mixer in layers}
    for i, pairs in enumerate(sets):
        for pair in pairs:
            layer, head = _checked(pair, layers)
            gates[layer][i, head] = factor
    return gates if per_example else {layer: gate[0] for layer, gate in gates.items()}


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
    """Arrays and tensors as lists; an iterator, which reads once, as a list; other things as they are."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, Iterator) else value


def _is_pair(item: object) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(x, Integral) for x in item)
