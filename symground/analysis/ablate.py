"""Silencing heads: a context manager that leaves the model as it found it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from symground.models import mixers

Heads = Collection[tuple[int, int]]


@contextmanager
def ablate(
    model: PreTrainedModel, heads: Heads | Sequence[Heads], mode: str = "zero", reference: None = None
) -> Iterator[None]:
    """Within the block, the given heads' outputs are replaced before the output projection.

    Args:
        model: attached.
        heads: (layer, head) pairs for all examples, or a collection of pairs for each example of the batch.
        mode: "zero", the study's.
        reference: for modes that take one; "zero" takes none.

    Nested blocks add up, and the model is as before on exit, after an exception too. A trace within the block carries
    the gates.

    Raises:
        ValueError: a layer or head that does not exist, a model without heads, an unknown mode. With a set per
            example, a forward pass of another batch size is refused by `ops.attention`, which names the gate.

    Source: arXiv 2510.13796, setting the outputs of the identified heads to zero.
    """
    if mode != "zero":
        raise ValueError(f"mode: expected 'zero', got {mode!r}")
    if reference is not None:
        raise ValueError("reference: mode 'zero' takes none")
    layers = mixers(model)
    if not layers:
        raise ValueError(f"model: {type(model).__name__} has no heads to silence")
    shape = {mixer.layer: mixer.heads for mixer in layers}
    items = [_plain(item) for item in _plain(heads)]
    per_example = bool(items) and all(isinstance(item, Collection) and not _is_pair(item) for item in items)
    sets = items if per_example else [items]
    device = next(model.parameters()).device
    gates = {mixer.layer: torch.ones(len(sets), mixer.heads) for mixer in layers}
    for i, pairs in enumerate(sets):
        for pair in pairs:
            if not _is_pair(pair):
                raise ValueError(
                    f"heads: expected (layer, head) pairs, or a collection of pairs per example; got {pair!r}"
                )
            layer, head = pair
            if layer not in shape or not 0 <= head < shape[layer]:
                raise ValueError(
                    f"heads: ({layer}, {head}) does not exist; the model has layers {min(shape)} to {max(shape)}"
                    + (f" with {shape[layer]} heads in layer {layer}" if layer in shape else "")
                )
            gates[layer][i, head] = 0.0
    with ExitStack() as stack:
        for mixer in layers:
            gate = gates[mixer.layer].to(device)
            if bool((gate == 1).all()):
                continue  # nothing to silence: the layer keeps its fastest path
            stack.enter_context(mixer.tapped(gate=_combine(mixer.tap.gate, gate if per_example else gate[0])))
        yield


def _combine(before: Tensor | None, gate: Tensor) -> Tensor:
    return gate if before is None else before * gate


def _plain(value: Any) -> Any:
    """Arrays and tensors as lists; an iterator, which reads once, as a list; other things as they are."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, Iterator) else value


def _is_pair(item: object) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(x, Integral) for x in item)
