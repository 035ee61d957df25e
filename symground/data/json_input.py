"""JSON from others: what cannot be read, and a field of another type, is named with its place and what was expected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from symground.typed import check_kind, told_json


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
    check_kind(value, kind, place, told_json)
    return value


def field(entry: Any, name: str, kind: type, place: str = "") -> Any:
    """The field of an object.

    Raises:
        ValueError: ``entry`` is no object, has no such field, or one of another kind.
    """
    where = f"{place}.{name}" if place else name
    if not isinstance(entry, Mapping):
        raise ValueError(f"{place or 'the whole'}: expected an object with {name!r}, got {told_json(entry)}")
    if name not in entry:
        raise ValueError(f"{place + ': ' if place else ''}has no {name!r}")
    return typed(entry[name], kind, where)
