"""Importing the parts a room needs, with a sentence about what to install when one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


def require(module: str, purpose: str, install: str = "symground") -> Any:
    """Import ``module``, or raise ImportError saying what it is for and what installs it."""
    try:
        found: ModuleType = importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{purpose} need the package {package}, which does not import here ({error}); pip install '{install}'"
        ) from error
    return found
