"""What a backward pass keeps in memory, and two ways to keep less: reading layers again, and host memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from symground.models.override import forward_as
from symground.models.replay import decoder_layers


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the block no weight wants a gradient: what only such gradients would read is not kept."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def checkpointed(model: PreTrainedModel) -> Iterator[None]:
    """Within the block each decoder layer keeps its input alone and runs again on the way back, in any mode.

    Raises:
        ValueError: a model whose layers are not in one list.
    """
    layers, _ = decoder_layers(model)
    again = {
        layer: partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False) for layer in layers
    }
    with forward_as(again):
        yield


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
