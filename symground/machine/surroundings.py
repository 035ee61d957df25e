"""Versions, and the faults of a machine's drivers: none, too old, a stub, or two CUDA libraries in one process."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from symground.machine.finding import Finding
from symground.version import VERSION

PACKAGES = ("torch", "triton", "numpy", "transformers", "flash-attn", "mamba-ssm", "causal-conv1d")
#: Libraries of which a process should have one.
_LIBRARIES = re.compile(r"\S*/(lib(?:cuda|cudart|cublas|cudnn|nvrtc))\.so[.\d]*")
_STUB, _NO_DEVICE = 34, 100  # results of cuInit
_WITHOUT = "everything runs on the CPU"


class Driver(NamedTuple):
    """NVIDIA's driver, as a program finds it."""

    path: str | None  # of libcuda; None if it does not load
    said: str  # by the loader, if it does not load
    result: int  # of cuInit
    version: tuple[int, int]  # the newest CUDA that it serves


def driver() -> Driver:
    """Load libcuda as PyTorch would, and ask it. Nothing is started on a GPU."""
    name = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        return Driver(None, str(error), 0, (0, 0))
    number = ctypes.c_int(0)
    result = int(library.cuInit(0))
    library.cuDriverGetVersion(ctypes.byref(number))
    path = next((line.split()[-1] for line in _maps().splitlines() if "/libcuda.so" in line), name)
    return Driver(path, "", result, (number.value // 1000, number.value % 1000 // 10))


def of_driver(found: Driver, wanted: str | None, available: bool) -> Finding:
    """What is wrong with the driver for a torch built for CUDA ``wanted``, or that nothing is; and what to do."""
    say = f"CUDA {found.version[0]}.{found.version[1]} at {found.path}"
    if wanted is None:
        return _driver("absent", f"this torch is not built for CUDA, so {_WITHOUT}")
    if found.path is None:
        return _driver(
            "absent",
            f"no driver ({found.said}), so {_WITHOUT}. On a machine with an NVIDIA GPU: install its driver; in a "
            "container: start it with --gpus all",
        )
    if "/stubs/" in found.path or found.result == _STUB:
        return _driver(
            "wrong",
            f"libcuda is a stub for building, {found.path}, so {_WITHOUT}: take its folder out of LD_LIBRARY_PATH",
        )
    if found.version[0] < int(wanted.split(".")[0]):
        return _driver(
            "wrong",
            f"the driver is too old: it serves {say}, and this torch is built for CUDA {wanted}, so {_WITHOUT}: update "
            "the driver, or install a torch for its CUDA",
        )
    if found.result == _NO_DEVICE:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES is {hidden!r})"
        return _driver("absent", f"the driver finds no GPU{why}, so {_WITHOUT}")
    if found.result or not available:
        why = f"cuInit gives error {found.result}" if found.result else "torch finds no GPU, although the driver does"
        to_do = "restart the machine after an update of its driver; nvidia-smi says more"
        return _driver("wrong", f"{why} ({say}), so {_WITHOUT}: {to_do}")
    return _driver("right", say)


def _driver(status: str, said: str) -> Finding:
    return Finding("driver", "cuda", status, said)


def doubled(maps: str) -> Iterator[Finding]:
    """CUDA libraries that a process has loaded twice, from the text of /proc/self/maps."""
    places: dict[str, set[str]] = {}
    for line in maps.splitlines():
        found = _LIBRARIES.search(line)
        if found:
            places.setdefault(found[1], set()).add(os.path.realpath(found[0]))
    for name, paths in sorted(places.items()):
        if len(paths) > 1:
            said = (
                f"the process has {len(paths)} of {name}: {', '.join(sorted(paths))}. Kernels may fail. Leave one: "
                "unset LD_LIBRARY_PATH, or install torch and the packages beside it for the same CUDA"
            )
            yield Finding("CUDA libraries", "cuda", "wrong", said)


def versions() -> dict[str, str]:
    """Name → version, of everything that a report of a fault should name."""
    import torch

    from symground.ops.common import extension

    found = {"symground": VERSION, "python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["torch is built for"] = f"CUDA {torch.version.cuda}" if torch.version.cuda else (
        f"ROCm {torch.version.hip}" if torch.version.hip else "CPUs"
    )  # fmt: skip
    parts = [name for name, part in (("CPU", extension.library), ("CUDA", extension.cuda)) if part is not None]
    found["C++ extension"] = f"its part for {' and '.join(parts)}" if parts else "not built, or switched off"
    found["cores"] = str(os.cpu_count())
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            found[f"cuda:{i}"] = f"{p.name}, compute capability {p.major}.{p.minor}, {p.total_memory >> 30} GiB"
    return found


def faults() -> list[Finding]:
    """Of the driver and of CUDA's libraries, in a process that has loaded what our GPU ops load."""
    import torch

    for module in ("triton", "flash_attn", "mamba_ssm", "causal_conv1d"):
        try:
            importlib.import_module(module)
        except Exception:  # the part that needs it says so
            continue
    if torch.version.hip:
        return []
    wanted = torch.version.cuda
    at = driver() if wanted else Driver(None, "", 0, (0, 0))
    return [of_driver(at, wanted, torch.cuda.is_available()), *doubled(_maps())]


def _maps() -> str:
    path = Path("/proc/self/maps")
    return path.read_text() if path.exists() else ""
