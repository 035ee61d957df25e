"""Checks of numbers, flags, words, paths and settings, with errors that describe the wrong value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
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


def described(value: Any) -> str:
    """A short description of a value."""
    if isinstance(value, (str, bool, int, float)):
        text = repr(value)
        return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '…'}"
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" {list(shape)}" if isinstance(shape, tuple) and shape else "")


def is_about(error: BaseException, *arguments: str) -> bool:
    """Whether an error of this package is a ValueError that names one of the arguments."""
    return isinstance(error, ValueError) and str(error).startswith(tuple(f"{name}:" for name in arguments))


def described_json(value: Any) -> str:
    """A value as JSON, shortened if it is long."""
    kind = _IN_JSON.get(type(value))
    text = f"{kind} of {len(value)}" if kind else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """An integer of Python or numpy, from ``least`` to ``most``, as Python's; True and False are not accepted.

    Raises:
        ValueError: names the argument ``name``, what was expected and what it got.
    """
    if not is_integer(value) or (least is not None and value < least) or (most is not None and value > most):
        bounds = f" from {least} to {most}" if most is not None else "" if least is None else f" of at least {least}"
        raise ValueError(f"{name}: expected an integer{bounds}, got {_got(value)}")
    return int(value)


def number(name: str, value: Any, within: str = "(-inf, inf)") -> float:
    """A number of Python or numpy in the interval ``within``, as Python's; True and False are not accepted.

    Args:
        name: the argument's name.
        value: the number.
        within: the ends of the interval; a square bracket includes its end, and a round one does not.

    Raises:
        ValueError: names the argument, what was expected and what it got.
    """
    low, high = _ends(within)
    try:
        exact = float(value) if is_number(value) else math.nan
    except OverflowError:
        exact = math.inf
    if not (low < exact < high or (exact == low and within[0] == "[") or (exact == high and within[-1] == "]")):
        wanted = "a finite number" if within == "(-inf, inf)" else f"a number in {within}"
        raise ValueError(f"{name}: expected {wanted}, got {_got(value)}")
    return exact


@cache
def _ends(interval: str) -> tuple[float, float]:
    low, high = map(float, interval[1:-1].split(","))
    return low, high


def flag(name: str, value: Any) -> bool:
    """True or False, of Python or numpy, as Python's.

    Raises:
        ValueError: names the argument ``name``, what was expected and what it got.
    """
    if not is_flag(value):
        raise ValueError(f"{name}: expected True or False, got {_got(value)}")
    return bool(value)


def choice(name: str, value: Any, known: Iterable[str | None]) -> Any:
    """One of some known words, or None if it is one of them.

    Raises:
        ValueError: names the argument ``name``, the words and what it got.
    """
    known = tuple(known)
    if not isinstance(value, (str, NoneType)) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}; got {_got(value)}")
    return value


def several(name: str, value: Any, known: Iterable[str]) -> tuple[str, ...]:
    """One or several of some known words.

    Raises:
        ValueError: names the argument ``name``, the words and what it got.
    """
    given = list(value) if is_list(value) else [value]
    if not given:
        raise ValueError(f"{name}: expected at least one of {', '.join(map(repr, known))}; got none")
    return tuple(choice(name, each, known) for each in given)


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or numpy, and no bool."""
    return isinstance(value, (int, Integral)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number of Python or numpy, and no bool."""
    return isinstance(value, (int, float, Real)) and not isinstance(value, bool)


def is_flag(value: Any) -> bool:
    """Whether a value is a bool of Python or numpy."""
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")


def is_list(value: Any) -> bool:
    """Whether a value is a list, or an array or another collection that is read like one."""
    one = isinstance(value, (str, bytes, Mapping)) or getattr(value, "ndim", 1) == 0
    return isinstance(value, Collection) and not one


def _got(value: Any) -> str:
    """A wrong argument in a message: numbers and words as they are written, others by their types."""
    if isinstance(value, str) or value is None:
        return repr(value)
    return str(value) if is_number(value) else described(value)


def check_types(settings: Any) -> None:
    """Refuse a field of a dataclass's instance whose value does not have its annotated type.

    A number of numpy becomes Python's, so that the settings can be written as JSON.

    Raises:
        ValueError: names the field, what was expected and what it got.
    """
    of: type = type(settings)
    for name, kind in _fields(of).items():
        value = getattr(settings, name)
        if not _is(value, kind):
            raise ValueError(f"{name}: expected {_words(kind)}, got {described(value)}")
        if (is_flag(value) or is_number(value)) and hasattr(value, "item"):
            object.__setattr__(settings, name, value.item())


def check_path(value: Any, name: str) -> Path:
    """``value`` as a path.

    Raises:
        ValueError: it is not a path; ``name`` is the argument's name.
    """
    if not isinstance(value, (str, Path)):
        raise ValueError(f"{name}: expected a path, got {described(value)}")
    return Path(value)


def check_file(value: Any, name: str, *, makes_folder: bool = False) -> Path:
    """``value`` as the path of a file to write; with ``makes_folder``, the folder it is in need not exist.

    Raises:
        ValueError: it is no path, a folder, or in a folder that does not exist; ``name`` is the argument's name.
    """
    path = check_path(value, name)
    if path.is_dir() or not (makes_folder or path.parent.is_dir()):
        where = "" if makes_folder else " in a folder that exists"
        raise ValueError(f"{name}: expected a file{where}, got {'the folder ' if path.is_dir() else ''}{path}")
    return path


def check_kind(value: Any, kind: type, name: str, shown: Callable[[Any], str] = described) -> None:
    """Refuse a value that is not an instance of a class; true and false are not accepted as numbers.

    Raises:
        ValueError: names the argument ``name``, the expected type, and the value as ``shown`` describes it.
    """
    if not _is(value, kind):
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
        return is_list(value) and (
            len(arguments) != 2 or arguments[1] is not ... or all(_is(x, arguments[0]) for x in value)
        )
    if origin is dict:
        return isinstance(value, Mapping) and all(
            _is(k, arguments[0]) and _is(x, arguments[1]) for k, x in value.items()
        )
    if kind is float:
        return is_number(value) and value == value  # NaN is none
    if kind in (int, bool):
        return is_integer(value) if kind is int else is_flag(value)
    return not isinstance(kind, type) or isinstance(value, kind)


def _words(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        return f"a list, each of it {_words(arguments[0])}"
    if origin is dict:
        return f"a mapping from {_words(arguments[0])} to {_words(arguments[1])}"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))
