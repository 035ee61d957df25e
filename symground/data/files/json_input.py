"""JSON from other sources: an error names the place of a damage or a wrong type, and what was expected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from symground.errors import check_kind, described_json


def parse_json(content: str | bytes) -> Any:
    """The contents of a JSON text.

    Raises:
        ValueError: it is not JSON (says where), or nested more deeply than Python reads, some 1,000 levels. No file
            that is read here needs more than ten, so no option raises this limit.
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


def json_typed(value: Any, kind: type, place: str) -> Any:
    """The value, if it has this type: str, int (not true or false), list or dict.

    Raises:
        ValueError: it has another type; ``place`` says where.
    """
    check_kind(value, kind, place, described_json)
    return value


def json_field(entry: Any, name: str, kind: type, place: str = "") -> Any:
    """The field of an object.

    Raises:
        ValueError: ``entry`` is not an object, has no such field, or the field has another type.
    """
    where = f"{place}.{name}" if place else name
    if not isinstance(entry, Mapping):
        raise ValueError(f"{place or 'the JSON'}: expected an object with {name!r}, got {described_json(entry)}")
    if name not in entry:
        raise ValueError(f"{place + ': ' if place else ''}has no {name!r}")
    return json_typed(entry[name], kind, where)
