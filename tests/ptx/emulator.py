"""A GPU of which the emulator is the processor: the package's kernels, launched by its own launchers, run on a CPU.

    with Emulator("sm_80").running():
        ops.attention(q, k, v, impl="triton")    # tensors of the CPU

Triton compiles each kernel to PTX as for such a GPU, and the emulator runs it on the tensors. Triton must not be in its
interpreter, so this happens in a process of its own, such as pytest's with `plugin.py`.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.nvidia.compiler import CUDABackend

from benchmarks.common.absent_gpu import Launch, absent_gpu
from symground.errors import choice
from tests.ops.common.kernels import below
from tests.ptx import arithmetic, matrix, transfer, wgmma  # noqa: F401  # they enter their opcodes
from tests.ptx.machine import Kernel
from tests.ptx.memory import Array, FaultError, GlobalMemory
from tests.ptx.program import parse

#: Those whose instructions it has, of the GPUs that `absent_gpu` knows. sm_100's products need tensor memory.
ARCHITECTURES = ("sm_80", "sm_86", "sm_90")


@functools.lru_cache(64)  # a decoded kernel is tens of thousands of objects
def kernel(ptx: bytes) -> Kernel:
    return Kernel(parse(ptx.decode()))


class Emulator:
    """Runs launches, and counts them."""

    def __init__(self, architecture: str, processors: int = 2) -> None:
        """
        Args:
            architecture: one of `ARCHITECTURES`.
            processors: of the GPU that launchers see; few, so that small inputs are not split to the last.

        Raises:
            ValueError: it does not have this architecture's instructions.
        """
        choice("architecture", architecture, ARCHITECTURES)
        self.architecture, self.processors = architecture, processors
        #: Kernel → launches, kernel → programs of these, opcode → how often a program ran it.
        self.launches: Counter[str] = Counter()
        self.programs: Counter[str] = Counter()
        self.opcodes: Counter[str] = Counter()
        #: The compiled kernels, by name: a kernel is compiled anew for other constants, types and tiles.
        self.compiled: dict[str, set[bytes]] = defaultdict(set)
        #: The tiles that ran, by name: (type of the first tensor, as Triton writes it; BM, BN, warps, stages).
        self.tiles: dict[str, set[tuple[str, int, int, int, int]]] = defaultdict(set)

    @contextmanager
    def running(self) -> Iterator[None]:
        """
        Raises:
            FaultError: a kernel does what it must not do (`memory.py`), or PyTorch reads what no kernel has written.
            NotImplementedError: a kernel has an instruction that the emulator does not know.
        """
        fresh = _Fresh()

        def launch(launch: Launch) -> None:
            self._run(launch, fresh)

        # What would be assembled is run instead. A cache of its own, since it holds PTX in place of machine code.
        cache = Path(os.environ.get("SYMGROUND_PTX_CACHE", Path(tempfile.gettempdir()) / "symground-ptx"))
        with (
            mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": str(cache)}),
            mock.patch.object(CUDABackend, "make_cubin", lambda self, text, *rest: text.encode()),
            absent_gpu(self.architecture, launch, self.processors),
            fresh,
        ):
            yield

    def _run(self, launch: Launch, fresh: _Fresh) -> None:
        function = launch.function
        program = kernel(function.binary)
        tensors = [value for _, value in launch.arguments.values() if isinstance(value, Tensor)]
        values = [value.data_ptr() if isinstance(value, Tensor) else value for _, value in launch.arguments.values()]
        names = program.program.parameters
        values += [0] * (len(names) - len(values))  # Triton's scratch memory, which these kernels do not ask for
        parameters = {name: (of, value) for (of, name), value in zip(names, values, strict=True)}
        self.launches[function.name] += 1
        self.programs[function.name] += math.prod(launch.grid)
        self.compiled[function.name].add(function.binary)
        if launch.config is not None:
            first = next(of for of, _ in launch.arguments.values() if of.startswith("*"))
            self.tiles[function.name].add((first[1:], *launch.config))
        memory = GlobalMemory(tensors, fresh.unset)
        program.launch(launch.grid, 32 * launch.warps, function.shared, parameters, memory, self.opcodes)


class _Fresh(TorchDispatchMode):
    """Memory that was allocated in this block, and which of its bytes torch or a kernel has written."""

    def __init__(self) -> None:
        super().__init__()
        self._unset: dict[int, tuple[StorageWeakRef, Array]] = {}

    def unset(self, x: Tensor) -> Array | None:
        """For each byte of the tensor's storage whether nothing has written it; None if all of it has been."""
        storage = x.untyped_storage()
        found = self._unset.get(storage.data_ptr())
        if found is None or found[0].expired() or len(found[1]) != storage.nbytes():
            return None
        return found[1]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if types:  # tensors of a kind of their own, which have no memory or wrap others
            return function(*args, **kwargs)
        if function.namespace == "symground":  # straight to its kernel, whose calls are seen here
            with self:
                found = below(function, *args, **kwargs)
            if not function._schema.name.endswith("_triton"):  # C++ writes its results unseen
                for x in found if isinstance(found, tuple) else (found,):
                    self._unset.pop(x.untyped_storage().data_ptr(), None)
            return found
        written = [
            value
            for argument, value in zip(function._schema.arguments, args, strict=False)
            if isinstance(value, Tensor) and argument.alias_info is not None and argument.alias_info.is_write
        ] + [value for name, value in kwargs.items() if name == "out" and isinstance(value, Tensor)]
        name = function._schema.name
        if not (function.is_view or name.startswith(("aten::empty", "aten::new_empty")) or name in _LOOKS_ONLY):
            for value in (*args, *kwargs.values()):
                for x in value if isinstance(value, list | tuple) else (value,):
                    if isinstance(x, Tensor) and not any(x is y for y in written):
                        self._check(x, name)
        found = function(*args, **kwargs)
        for x in written:
            self._write(x)
        if name.startswith(("aten::empty", "aten::new_empty")) and isinstance(found, Tensor) and found.numel():
            storage = found.untyped_storage()
            torch.empty(0, dtype=torch.uint8).set_(storage).fill_(0xFF)  # NaN in every type
            self._unset[storage.data_ptr()] = (StorageWeakRef(storage), np.ones(storage.nbytes(), np.bool_))
        elif isinstance(found, Tensor) and not function.is_view and not any(found is x for x in written):
            self._unset.pop(found.untyped_storage().data_ptr(), None)
        return found

    def _bytes(self, x: Tensor) -> Tensor | None:
        """For each byte of the tensor itself whether nothing has written it, [*x.shape, bytes]; None if all are."""
        unset = self.unset(x)
        if unset is None or not x.numel():
            return None
        size = x.element_size()
        strides = (*(step * size for step in x.stride()), 1)
        return torch.from_numpy(unset).as_strided((*x.shape, size), strides, x.storage_offset() * size)

    def _write(self, x: Tensor) -> None:
        unset = self._bytes(x)
        if unset is not None:
            unset.fill_(False)

    def _check(self, x: Tensor, name: str) -> None:
        unset = self._bytes(x)
        if unset is not None and unset.any():
            raise FaultError(f"{name} reads memory that nothing has written, of shape {tuple(x.shape)}")


_LOOKS_ONLY = ("aten::detach", "aten::alias", "aten::sym_size", "aten::zeros_like", "aten::ones_like")
