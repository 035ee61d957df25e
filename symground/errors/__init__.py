"""Checks whose errors say what is wrong: types, missing packages and devices, what is switched off, Rust libraries."""

from symground.errors.disable import DISABLE, SWITCHES, switched_off
from symground.errors.missing import check_device, import_error, require
from symground.errors.rust import ENDS, errors_named, panics_named
from symground.errors.types import (
    WrongUsageError,
    check_file,
    check_kind,
    check_path,
    check_types,
    choice,
    described,
    described_json,
    flag,
    integer,
    is_about,
    is_flag,
    is_integer,
    is_list,
    is_number,
    number,
    several,
)

__all__ = [
    "DISABLE", "ENDS", "SWITCHES", "WrongUsageError", "check_device", "check_file", "check_kind", "check_path",
    "check_types",
    "choice", "described", "described_json", "errors_named", "flag", "import_error", "integer", "is_about", "is_flag",
    "is_integer", "is_list", "is_number", "number", "panics_named", "require", "several", "switched_off",
]  # fmt: skip
