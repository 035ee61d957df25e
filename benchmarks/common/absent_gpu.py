"""A GPU that is not there: Triton's launch path, and this package's, up to the launch itself, on tensors of the CPU.

Kernels are specialised and compiled for the architecture as on such a GPU, from the same arguments. What would be
launched goes to a function instead. Triton must not be in its interpreter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.common.devices import DEVICES, Device
from symground.kernels.common import launch as launches
from symground.kernels.common.configs import Config, tables
from symground.ops.attention import api as attention
from symground.ops.attention.weights import api as weights
from symground.ops.common import needs
from symground.ops.ssd import api as ssd
from symground.ops.vocabulary import api as vocabulary


class Function(NamedTuple):
    """A compiled kernel, loaded."""

    name: str
    binary: bytes
    #: Bytes of shared memory.
    shared: int


class Launch(NamedTuple):
    """One launch: a compiled kernel, its grid, and its arguments in order, without those fixed at compile time."""

    function: Function
    warps: int
    #: Its tile and the pipeline's stages; None for a kernel without a tile.
    config: Config | None
    grid: tuple[int, int, int]
    #: Parameter → (its type as Triton writes it, such as ``*bf16``, and the value).
    arguments: dict[str, tuple[str, Any]]


def nowhere(launch: Launch) -> None:
    """Launch nothing."""


@contextmanager
def absent_gpu(
    architecture: str, launch: Callable[[Launch], None] = nowhere, processors: int | None = None
) -> Iterator[None]:
    """Within the block, ``impl="triton"`` takes tensors of the CPU for a GPU's, and ``launch`` receives each launch.

    Args:
        architecture: a key of `DEVICES`.
        processors: of the GPU; None is as many as it has. Launchers split work over them.
    """
    device = DEVICES[architecture]
    count = device.processors if processors is None else processors
    before = triton.runtime.driver._active
    with ExitStack() as stack:
        for api in (attention, weights, ssd, vocabulary):
            there = api.IMPLEMENTATIONS["triton"]._replace(refuses=needs.nothing)
            stack.enter_context(mock.patch.dict(api.IMPLEMENTATIONS, {"triton": there}))
        stack.enter_context(mock.patch.dict(launches._remembered, clear=True))  # it knows one architecture of a device
        for module in _kernel_modules():
            for name, value in (("architecture_of", architecture), ("processors", count)):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, lambda _, value=value: value))
        triton.runtime.driver.set_active(_Driver(device, launch))
        try:
            yield
        finally:
            triton.runtime.driver._active = before


def _kernel_modules() -> list[Any]:
    tables()  # it imports every file of kernels
    return [module for name, module in [*sys.modules.items()] if name.startswith("symground.kernels.")]


class _Driver:
    """What Triton's just-in-time compiler asks of a driver."""

    binary_ext = "cubin"

    def __init__(self, device: Device, launch: Callable[[Launch], None]) -> None:
        self._device, self.launch = device, launch
        self.utils = self
        self.launcher_cls = _Launcher

    def get_current_device(self) -> Device:
        return self._device  # kernels are cached by it, so those of two architectures are kept apart

    def get_current_stream(self, device: Any) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._device.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: Any) -> dict[str, int]:
        return {"max_shared_mem": self._device.shared, "multiprocessor_count": self._device.processors, "warpSize": 32}

    def load_binary(self, name: str, binary: bytes, shared: int, device: Any) -> tuple[Any, ...]:
        return (name, Function(name, binary, shared), 0, 0, 1024)  # a module, so that it is loaded once

    def unload_module(self, module: Any) -> None: ...


class _Launcher:
    """A compiled kernel keeps its launcher, also for later blocks, so it asks the active driver what to do."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self._types = [*source.signature.items()]
        self._warps = metadata.num_warps
        constants = {name: source.constants.get((place,)) for place, name in enumerate(source.fn.arg_names)}
        tile = constants.get("BM"), constants.get("BN")
        self._config = None if None in tile else Config(*tile, metadata.num_warps, metadata.num_stages)

    def __call__(self, x: int, y: int, z: int, stream: int, function: Function, *rest: Any) -> None:
        launch = triton.runtime.driver.active.launch
        if launch is nowhere:
            return
        values = rest[-len(self._types) :]
        arguments = {
            name: (of, value) for (name, of), value in zip(self._types, values, strict=True) if of != "constexpr"
        }
        launch(Launch(function, self._warps, self._config, (x, y, z), arguments))
