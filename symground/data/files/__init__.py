"""Reading files of any origin safely: folders, archives, JSON; and arrays on disk that are filled in place."""

from symground.data.files.json_input import json_field, json_typed, parse_json
from symground.data.files.memory_maps import create_array
from symground.data.files.walk import LeftOut, Limits, file_names, files_in, printable

__all__ = [
    "LeftOut",
    "Limits",
    "create_array",
    "file_names",
    "files_in",
    "json_field",
    "json_typed",
    "parse_json",
    "printable",
]
