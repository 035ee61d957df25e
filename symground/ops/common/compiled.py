"""Marks that torch.compile reads. Functions go without them where torch cannot import its compiler.

torch imports Triton with its compiler, and a Triton that is broken (it raises another error than ImportError) breaks
the import of both. Plain torch works there, and so do the ops; only torch.compile does not, and says why.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


@cache  # one attempt: torch registers things while it imports its compiler, and would register them twice
def _compiler_imports() -> bool:
    try:
        importlib.import_module("torch._dynamo")
    except Exception:
        return False
    return True


def constant(function: F) -> F:
    """``function``, whose result a compiled graph uses as a constant."""
    if not _compiler_imports():
        return function
    marked: F = torch.compiler.assume_constant_result(function)
    return marked


def opaque(function: F) -> F:
    """``function``, into which torch.compile does not trace."""
    if not _compiler_imports():
        return function
    marked: F = torch.compiler.disable(function)
    return marked
