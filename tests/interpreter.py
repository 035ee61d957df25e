"""Triton's interpreter without the work that it repeats: the same results in less time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import ismodule
from typing import Any


def quicken() -> None:
    """Scan triton.language once for each kernel, not at each call inside it, and look up NumPy's dtypes by name."""
    from triton import language
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):  # another version of Triton: these are its private functions
        return
    patch, dtype, dtypes = interpreter._patch_lang, interpreter._get_np_dtype, {}

    @functools.cache
    def languages(function: Callable[..., Any]) -> list[Any]:
        return [x for x in function.__globals__.values() if ismodule(x) and x in (language, language.core)]

    def patch_once(function: Callable[..., Any]) -> Any:
        """A language is patched for as long as its functions are not the compiler's."""
        if any(language.core.is_builtin(x.load) for x in languages(function)):
            return patch(function)
        return interpreter._LangPatchScope()

    def dtype_by_name(x: Any) -> Any:
        if x.name not in dtypes:
            dtypes[x.name] = dtype(x)
        return dtypes[x.name]

    interpreter._patch_lang, interpreter._get_np_dtype = patch_once, dtype_by_name
