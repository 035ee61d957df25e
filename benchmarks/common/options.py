"""What options take, checked before anything is measured; argparse puts the option's name before an error."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

from symground.files import read_json


def json_file(what: str, *fields: str) -> Callable[[str], Path]:
    """A file with a JSON object that has one of ``fields``; ``what`` says in words what it is."""

    def check(text: str) -> Path:
        _read(Path(text), f"expected {what}; got {text}", fields)
        return Path(text)

    return check


def folder_of(what: str, inside: str, *fields: str) -> Callable[[str], Path]:
    """A folder with ``inside`` in it: another folder, or if there are ``fields`` a JSON file that has one of them."""

    def check(text: str) -> Path:
        path = Path(text)
        message = f"expected {what}, which has {inside}; got {text}"
        if fields:
            _read(path / inside, message, fields)
        elif not (path / inside).is_dir():
            raise ArgumentTypeError(message)
        return path

    return check


def new_file(text: str) -> Path:
    """A file to write, in a folder that is there."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentTypeError(f"expected a file to write, in a folder that exists; got {text}")
    return path


def program(text: str) -> str:
    """A file that can be run; its links are kept, by which a virtual environment is told from another."""
    if not os.path.isfile(text) or not os.access(text, os.X_OK):
        raise ArgumentTypeError(f"expected a program that can be run; got {text}")
    return os.path.abspath(text)


def folder_to_write(text: str) -> Path:
    """A folder that is there, or can be made."""
    path = Path(text).absolute()
    there = next(x for x in (path, *path.parents) if x.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ArgumentTypeError(f"expected a folder, or a name for one; {there} is no folder to write in; got {text}")
    return path


def integer(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """A whole number from ``least`` to ``most``."""

    def check(text: str) -> int:
        found = int(text) if text.removeprefix("-").isdecimal() else None
        if found is None or found < least or (most is not None and found > most):
            span = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise ArgumentTypeError(f"expected a whole number {span}; got {text}")
        return found

    return check


def seconds(text: str) -> float:
    """A number above 0."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise ArgumentTypeError(f"expected seconds, a number above 0; got {text}")
    return found


def _read(file: Path, message: str, fields: tuple[str, ...]) -> None:
    try:
        found: dict[str, Any] = read_json(file)
    except (ValueError, OSError) as error:
        raise ArgumentTypeError(f"{message}: {error}") from None
    if not any(isinstance(found.get(field), list) for field in fields):
        raise ArgumentTypeError(f"{message}: {file} has no list {' or '.join(fields)}")
