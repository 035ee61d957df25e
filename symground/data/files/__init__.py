"""Files from elsewhere, read without trust: folders, archives, JSON; and arrays on disk that are filled in place."""

from symground.data.files.json_input import field, parse_json, typed
from symground.data.files.memory_maps import create
from symground.data.files.walk import LeftOut, Limits, file_names, files_in, printable

__all__ = [
    "LeftOut",
    "Limits",
    "create",
    "field",
    "file_names",
    "files_in",
    "parse_json",
    "printable",
    "typed",
]
