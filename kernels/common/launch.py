"""Parts of every launcher: rows in the layout that kernels take, the configuration to launch with, and the launch."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from symground.kernels.common.configs import WIDEST, Config, Tiles, architecture_of, shipped

#: Bytes of a row per step of a product that reads its rows in chunks.
CHUNK_BYTES = 128
#: The widest float32 rows of which two tiles, each in its TF32 parts, fit the registers.
WHOLE = 128
#: The most columns of a head that one program keeps of a result: those for which there are tiles.
PART = WIDEST


class Launch:
    """A launch of which everything is fixed but the tensors.

    ``kernel[grid](…)`` does the same, and does it here at the first call. At each call it takes 20 µs to find what was
    compiled for such arguments. Here only the tensors can change, of which Triton looks at the dtype and at whether the
    address is a multiple of 16.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], numbers: tuple[float | None, ...], **fixed: Any) -> None:
        """A kernel takes its tensors, then ``numbers``, in its order; by name what is ``fixed`` when it is compiled."""
        self._kernel, self._grid, self._numbers, self._fixed = kernel, grid, numbers, fixed
        # The interpreter has its own way. AMD's compiler also looks at the size of a tensor's storage.
        self._remembers = isinstance(kernel, JITFunction) and not torch.version.hip
        self._compiled: dict[tuple[Any, ...], tuple[CompiledKernel, tuple[Any, ...]]] = {}

    def __call__(self, *tensors: Tensor | None) -> None:
        knobs = triton.knobs
        before, after = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        listens = getattr(before, "calls", before) or getattr(after, "calls", after)  # a profiler
        if listens or not self._remembers:
            self._kernel[self._grid](*tensors, *self._numbers, **self._fixed)
            return
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        key = (
            device, knobs.runtime.debug, knobs.compilation.instrumentation_mode,
            *[x if x is None else (x.dtype, x.data_ptr() % 16 == 0) for x in tensors],
        )  # fmt: skip
        found = self._compiled.get(key)
        if found is None:
            compiled = self._kernel[self._grid](*tensors, *self._numbers, **self._fixed)
            if isinstance(compiled, CompiledKernel):
                names = self._kernel.arg_names[len(tensors) + len(self._numbers) :]
                rest = (*self._numbers, *(self._fixed[name] for name in names))
                self._compiled[key] = compiled, rest
            return
        compiled, rest = found
        compiled.run(
            *self._grid, *(1, 1)[len(self._grid) - 1 :], driver.get_current_stream(device), compiled.function,
            compiled.packed_metadata, None, None, None, *tensors, *rest,
        )  # fmt: skip


#: What was made once for the calls of a shape, or for launches with the same numbers. What is full is emptied.
_remembered: dict[Any, dict[Any, Any]] = {}
MOST_REMEMBERED = 1024


def remembered(*key: Any) -> dict[Any, Any]:
    """A dictionary of its own for each key, which is the same at the next call with this key.

    The key has everything on which the values depend that are kept there.
    """
    found = _remembered.get(key)
    if found is None:
        if len(_remembered) >= MOST_REMEMBERED:
            _remembered.clear()
        found = _remembered.setdefault(key, {})
    elif len(found) >= MOST_REMEMBERED:
        found.clear()
    return found


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[float | None, ...],
    **fixed: Any,
) -> None:
    """A `Launch` that is found again by all that is fixed in it. A number is of the same type at every call."""
    launches = remembered(id(kernel), grid, numbers, *fixed, *fixed.values())
    if not launches:
        launches[None] = Launch(kernel, grid, numbers, **fixed)
    launches[None](*tensors)


def cdiv(size: int, of: int) -> int:
    """``size`` divided by ``of``, rounded up; triton.cdiv takes 2 µs."""
    return -(-size // of)


def power_of_2(size: int) -> int:
    """The smallest power of two that is at least ``size``."""
    return 1 << max(0, size - 1).bit_length()


def rows_adjacent(x: Tensor) -> Tensor:
    """[B,H,T,D] with contiguous rows, for loads of 16 bytes; copied only if they are not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def block_of(size: int) -> int:
    """The width of a tile for heads of this size: a power of two, as Triton requires, and at least a dot's minimum."""
    return max(16, power_of_2(size))


def part_of(size: int) -> int:
    """The columns of a head of this size that one program keeps: all of them up to `PART`, as a power of two."""
    return min(PART, block_of(size))


def chunk_of(x: Tensor) -> int:
    """Columns per step of a product that reads the rows of ``x`` in chunks."""
    return min(block_of(x.shape[-1]), CHUNK_BYTES // x.element_size())


def too_wide(x: Tensor) -> bool:
    """Whether the rows of ``x`` are read in chunks even in a product of tiles that the kernel has loaded."""
    return x.shape[-1] > (WHOLE if precision_of(x) == "tf32x3" else PART)


def precision_of(x: Tensor) -> str:
    """How a dot multiplies the dtype of ``x``: float32 as three TF32 products, for float32's accuracy on tensor cores.

    AMD's matrix cores multiply float32 directly.
    """
    return "tf32x3" if x.dtype == torch.float32 and not architecture_of(x.device).startswith("gfx") else "ieee"


def tunes() -> bool:
    """Whether configurations are measured at their first use (`tuning.py`)."""
    return os.environ.get("SYMGROUND_AUTOTUNE") == "1"


class Tuned(Protocol):
    """A call, of which the best configuration may depend on a few properties."""

    @property
    def tuning_key(self) -> tuple[Any, ...]: ...


def config_of(
    kernel: str, tables: Mapping[str, Tiles], x: Tensor, call: Tuned, run: Callable[[Config], Any],
    lighter: bool = False,
) -> Config:  # fmt: skip
    """The shipped configuration for this device and row length, or a measured one if tuning is switched on.

    ``tables`` are those in the kernel's file; ``lighter`` as for `shipped`.
    """
    architecture = architecture_of(x.device)
    best = shipped(kernel, tables, architecture, x.shape[-1], x.element_size(), lighter)
    if x.is_cuda and tunes() and not torch.cuda.is_current_stream_capturing():
        from symground.kernels.common import tuning

        return tuning.best(kernel, architecture, (x.shape[-1], str(x.dtype), *call.tuning_key), best, run)
    return best


@functools.cache
def processors(device: torch.device) -> int:
    """A lower bound of the number of programs that a device runs at the same time."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
