"""JSON from others: what cannot be read, and a field of another type, is named with its place and what was expected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_NAMES: dict[type, str] = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


def parse_json(content: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is no JSON (says where), or nested more deeply than Python reads, some 1,000 levels. No file that
            is read here needs more than ten, so no option raises that.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(
            "not JSON that can be read: nested more deeply than Python reads (some 1,000 levels)"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON: not UTF-8 ({error})") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None


def typed(value: Any, kind: type, place: str) -> Any:
    """The value, where it is of this kind: str, int (not true or false), list or dict.

    Raises:
        ValueError: it is of another; ``place`` says where.
    """
    if type(value) is not kind:
        raise ValueError(f"{place}: expected {_NAMES[kind]}, got {shown_json(value)}")
    return value


def field(entry: Any, name: str, kind: type, place: str = "") -> Any:
    """The field of an object.

    Raises:
        ValueError: ``entry`` is no object, has no such field, or one of another kind.
    """
    where = f"{place}.{name}" if place else name
    if not isinstance(entry, Mapping):
        raise ValueError(f"{place or 'the whole'}: expected an object with {name!r}, got {shown_json(entry)}")
    if name not in entry:
        raise ValueError(f"{place + ': ' if place else ''}has no {name!r}")
    return typed(entry[name], kind, where)


def shown_json(value: Any) -> str:
    """A value as it stands in JSON, its beginning where it is long."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (str, int, float, bool, type(None))) else ""
    text = text or f"{_NAMES[type(value)]} of {len(value)}"
    return text if len(text) <= 60 else f"{text[:57]}…"
