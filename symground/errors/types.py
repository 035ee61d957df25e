"""Type checks of settings, paths and objects, with errors that describe the wrong value."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMES: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "True or False", str: "text", NoneType: "None", Path: "a path",
}  # fmt: skip
_IN_JSON: dict[Any, str] = {list: "a list", dict: "an object"}


class WrongUsageError(ValueError):
    """Command-line arguments that are not a valid command."""


def told(value: Any) -> str:
    """A short description of a value."""
    if isinstance(value, (str, bool, int, float)):
        text = repr(value)
        return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '…'}"
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" {list(shape)}" if isinstance(shape, tuple) and shape else "")


def told_json(value: Any) -> str:
    """A value as JSON, shortened if it is long."""
    kind = _IN_JSON.get(type(value))
    text = f"{kind} of {len(value)}" if kind else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def check_types(settings: Any, of: type) -> None:
    """Refuse a dataclass field whose value does not have its annotated type; only plain types are checked.

    Args:
        settings: the instance.
        of: the dataclass whose fields are checked, which may be one that the instance's class extends.

    Raises:
        ValueError: names the field, what was expected and what it got.
    """
    for name, kind in _fields(of).items():
        value = getattr(settings, name)
        if not _is(value, kind):
            raise ValueError(f"{name}: expected {_words(kind)}, got {told(value)}")


def check_path(value: Any, name: str) -> Path:
    """``value`` as a path.

    Raises:
        ValueError: it is not a path; ``name`` is the argument's name.
    """
    if not isinstance(value, (str, Path)):
        raise ValueError(f"{name}: expected a path, got {told(value)}")
    return Path(value)


def check_kind(value: Any, kind: type, name: str, shown: Callable[[Any], str] = told) -> None:
    """Refuse a value that is not an instance of a class; true and false are not accepted as numbers.

    Raises:
        ValueError: names the argument ``name``, the expected type, and the value as ``shown`` describes it.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {**_NAMES, **_IN_JSON}.get(kind, kind.__name__)
        raise ValueError(f"{name}: expected {words}, got {shown(value)}")


@cache
def _fields(of: type) -> dict[str, Any]:
    return {name: kind for name, kind in get_type_hints(of).items() if name in of.__dataclass_fields__}  # type: ignore[attr-defined]


def _is(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_is(value, each) for each in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        listed = isinstance(value, Iterable) and not isinstance(value, (str, bytes, dict))
        return listed and (len(arguments) != 2 or arguments[1] is not ... or all(_is(x, arguments[0]) for x in value))
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return kind not in _NAMES or isinstance(value, kind)


def _words(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        return f"a list, each of it {_words(arguments[0])}"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))
