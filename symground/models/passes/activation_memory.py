"""What a backward pass keeps in memory, and two ways to keep less: reading layers again, and host memory."""

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
from symground.models.passes.layer_list import decoder_layers

_LOCK = threading.RLock()
#: Model → how many blocks hold it frozen, and the weights that want a gradient otherwise.
_FROZEN: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Parameter]]] = WeakKeyDictionary()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the block no weight wants a gradient: what only such gradients would read is not kept.

    Of blocks that overlap, in one thread or in several, the first freezes and the last to end gives back. A weight has
    one such mark for all threads: nobody trains the model meanwhile.
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
    """Within the block each decoder layer keeps its input alone and runs again on the way back, in any mode.

    Raises:
        ValueError: a model whose layers are not in one list.
    """
    layers, _ = decoder_layers(model)
    with forward_as({layer: partial(_kept_thin, own_forward(layer)) for layer in layers}):
        yield


def _kept_thin(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(remembering(forward), *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


@contextmanager
def offloaded(model: nn.Module) -> Iterator[None]:
    """Within the block what is kept for the way back goes to host memory until then; weights stay where they are."""
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
    """Bytes of what was kept for the way back within a ``with`` block, each storage once, weights and views free."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        self._known = {_storage(parameter) for parameter in (*model.parameters(), *model.buffers())}
        self._held: list[Any] = []
        self._hooks = saved_tensors_hooks(self._pack, lambda x: x)

    def _pack(self, x: Tensor) -> Tensor:
        if _storage(x) not in self._known:
            self._known.add(_storage(x))
            self._held.append(x)  # or its place could be given to another
            self.bytes += x.untyped_storage().nbytes()
        return x

    def __enter__(self) -> Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
