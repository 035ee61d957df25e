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
from types import ModuleType
from typing import Any, NamedTuple

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
    said: str  # by the loader, if it does not load or lacks a function
    result: int  # of cuInit
    version: tuple[int, int] | None  # the newest CUDA that it serves; None if it does not tell


def driver() -> Driver:
    """Load libcuda as PyTorch would, and ask it. Nothing is started on a GPU."""
    name = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) or (name in str(error) and "No such file" in str(error))
        return Driver(None if missing else name, str(error), 0, None)
    path = next((line.split()[-1] for line in _maps().splitlines() if "/libcuda.so" in line), name)
    number = ctypes.c_int(0)
    try:
        result = int(library.cuInit(0))
        told = library.cuDriverGetVersion(ctypes.byref(number)) == 0 and number.value > 0
    except AttributeError as error:
        return Driver(path, str(error), 0, None)
    return Driver(path, "", result, (number.value // 1000, number.value % 1000 // 10) if told else None)


def of_driver(found: Driver, wanted: str | None, available: bool) -> Finding:
    """What is wrong with the driver for a torch built for CUDA ``wanted``, or that nothing is; and what to do."""
    if wanted is None:
        return _driver("absent", f"this torch is not built for CUDA, so {_WITHOUT}")
    if found.path is None:
        return _driver(
            "absent",
            f"no driver ({found.said}), so {_WITHOUT}. On a machine with an NVIDIA GPU: install its driver; in a "
            "container: start it with --gpus all",
        )
    if found.said:
        return _driver(
            "wrong",
            f"{found.path} is no whole driver ({found.said}), so {_WITHOUT}: install the driver again, or take the "
            "folder of this file out of LD_LIBRARY_PATH",
        )
    if "/stubs/" in found.path or found.result == _STUB:
        return _driver(
            "wrong",
            f"libcuda is a stub for building, {found.path}, so {_WITHOUT}: take its folder out of LD_LIBRARY_PATH",
        )
    serves = "a CUDA that it does not tell" if found.version is None else "CUDA {}.{}".format(*found.version)
    say = f"{serves} at {found.path}"
    if found.version is not None and found.version[0] < int(wanted.split(".")[0]):
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
    """Name → version, of everything that a report of a fault should name. Nothing is imported for it."""
    found = {"symground": VERSION, "python": platform.python_version(), "system": platform.platform()}
    found["cores"] = str(os.cpu_count())
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def built_for(torch: ModuleType) -> str:
    """What ``torch`` is built for."""
    cuda, hip = torch.version.cuda, torch.version.hip
    return f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPUs"


def gpus() -> dict[str, Any]:
    """The accelerator that torch finds here, or None, and the versions of CUDA's."""
    import torch

    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    found = {}
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        p = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{p.name}, compute capability {p.major}.{p.minor}, {p.total_memory >> 30} GiB"
    return {"device": None if here is None else here.type, "gpus": found}


def faults() -> list[Finding]:
    """Of the driver and of CUDA's libraries, in a process that has loaded what our GPU ops load."""
    import torch

    from symground.ops.common.disabled import DISABLED

    for module in {"triton", "flash_attn", "mamba_ssm", "causal_conv1d"} - DISABLED:
        try:
            importlib.import_module(module)
        except Exception:  # the part that needs it says so
            continue
    if torch.version.hip:
        return []
    wanted = torch.version.cuda
    at = driver() if wanted else Driver(None, "", 0, None)
    return [of_driver(at, wanted, torch.cuda.is_available()), *doubled(_maps())]


def _maps() -> str:
    path = Path("/proc/self/maps")
    return path.read_text() if path.exists() else ""
