"""The activations saved for the backward pass, and two ways to save memory: recompute and host memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from symground.models.hooks import forward_as, own_forward, remembering
from symground.models.passes.layer_list import all_layers

_LOCK = threading.RLock()
#: Model → the number of blocks that hold it frozen, and the weights that require a gradient outside of them.
_FROZEN: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Parameter]]] = WeakKeyDictionary()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the block no weight requires a gradient, so activations that only weight gradients need are not saved.

    If blocks overlap, in one thread or in several, the first to begin freezes the weights and the last to end restores
    them. ``requires_grad`` is shared by all threads, so the model must not be trained meanwhile.
    """
    with _LOCK:
        blocks, learning = _FROZEN.get(model, (0, []))
        if not blocks:
            learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        _FROZEN[model] = blocks + 1, learning
        for parameter in learning:
            parameter.requires_grad_(False)
    try:
        yield
    finally:
        with _LOCK:
            blocks, learning = _FROZEN.pop(model)
            if blocks > 1:
                _FROZEN[model] = blocks - 1, learning
            else:
                for parameter in learning:
                    parameter.requires_grad_(True)


@contextmanager
def checkpointed(model: PreTrainedModel) -> Iterator[None]:
    """Within the block each layer saves only its input and is recomputed in the backward pass, in any mode."""
    with forward_as({layer: partial(_kept_thin, own_forward(layer)) for layer in all_layers(model)}):
        yield


def _kept_thin(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(remembering(forward), *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


@contextmanager
def offloaded(model: nn.Module) -> Iterator[None]:
    """Within the block saved activations move to host memory until the backward pass; weights stay in place."""
    weights = {_storage(parameter) for parameter in model.parameters()}

    def pack(x: Tensor) -> tuple[torch.device, Tensor]:
        if x.device.type == "cpu" or _storage(x) in weights:
            return x.device, x
        host = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)
        return x.device, host.copy_(x, non_blocking=True)

    def unpack(kept: tuple[torch.device, Tensor]) -> Tensor:
        device, x = kept
        return x.to(device, non_blocking=True)

    with saved_tensors_hooks(pack, unpack):
        yield


class Kept:
    """Bytes saved for the backward pass within a ``with`` block. Each storage counts once; weights do not count."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        self._known = {_storage(parameter) for parameter in (*model.parameters(), *model.buffers())}
        self._held: list[Any] = []
        self._hooks = saved_tensors_hooks(self._pack, lambda x: x)

    def _pack(self, x: Tensor) -> Tensor:
        if _storage(x) not in self._known:
            self._known.add(_storage(x))
            self._held.append(x)  # so that its address is not reused
            self.bytes += x.untyped_storage().nbytes()
        return x

    def __enter__(self) -> Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
