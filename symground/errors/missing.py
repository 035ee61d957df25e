"""Optional packages and devices: errors say what is missing and how to install it."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType
from typing import Any


def require(module: str, purpose: str, install: str = "symground") -> Any:
    """Import ``module``, or raise ImportError saying what needs it, what is missing, and how to install it.

    The missing package may be one that ``module`` itself imports.
    """
    try:
        found: ModuleType = importlib.import_module(module)
    except ImportError as error:
        package = ((isinstance(error, ModuleNotFoundError) and error.name) or module).partition(".")[0]
        raise ImportError(
            f"{purpose} need the package {package}, which cannot be imported ({error}); pip install '{install}'"
        ) from error
    return found


@cache
def import_error(module: str) -> str | None:
    """Why a package does not import: its error on one line, or "" if it is not installed. None if it imports."""
    try:
        importlib.import_module(module)
    except Exception as error:
        installed = importlib.util.find_spec(module.partition(".")[0]) is not None
        return f"{type(error).__name__}: {' '.join(str(error).split())}" if installed else ""
    return None


def check_device(device: Any) -> None:
    """Refuse a device that torch does not know, or that this machine or this build of torch does not have.

    Raises:
        ValueError: the device is not available; says which are.
    """
    torch = require("torch", "devices", "torch")
    here = {"cpu": 1}
    if torch.accelerator.is_available():
        here[torch.accelerator.current_accelerator().type] = torch.accelerator.device_count()
    try:
        asked = torch.device(device)
    except (RuntimeError, TypeError):
        asked = None
    if asked is not None and (asked.index or 0) < here.get(asked.type, 0):
        return
    known = ["cpu", *(f"{kind}:{i}" for kind, count in here.items() if kind != "cpu" for i in range(count))]
    built = "" if torch.version.cuda else ": this build of torch is for CPUs only"
    lacks = f" (CUDA is not available{built})" if str(device).startswith("cuda") and "cuda" not in here else ""
    raise ValueError(f"device: expected {' or '.join(map(repr, known))}; got {device!r}{lacks}")
