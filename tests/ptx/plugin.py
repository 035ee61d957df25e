"""A plugin of pytest: the tests of the Triton kernels, on compiled kernels that the emulator runs.

    SYMGROUND_EMULATE=sm_90 python -m pytest -p tests.ptx.plugin tests/ops/attention/test_triton.py

SYMGROUND_EMULATE is sm_80 (also without the variable), sm_86 or sm_90. SYMGROUND_EMULATE_COUNTS=FILE writes what was
run to a JSON file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports Triton.
os.environ["TRITON_INTERPRET"] = "0"
os.environ.setdefault("SYMGROUND_EMULATE", "sm_80")

import pytest

from symground.errors import choice
from tests.ptx.emulator import ARCHITECTURES, Emulator

try:
    emulator = Emulator(choice("SYMGROUND_EMULATE", os.environ["SYMGROUND_EMULATE"], ARCHITECTURES))
except ValueError as error:
    raise SystemExit(str(error)) from None  # pytest would show a traceback of the import


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with emulator.running():
        yield


_passed: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        _passed.append(report.nodeid)


def pytest_sessionfinish() -> None:
    if "SYMGROUND_EMULATE_COUNTS" in os.environ:
        kernels = {
            name: {
                "compiled": len(emulator.compiled[name]), "launches": count, "programs": emulator.programs[name],
                "tiles": [list(x) for x in sorted(emulator.tiles[name])],
            }
            for name, count in sorted(emulator.launches.items())
        }  # fmt: skip
        opcodes = dict(sorted(emulator.opcodes.items()))
        found = {
            "architecture": emulator.architecture, "tests": len(_passed), "kernels": kernels, "instructions": opcodes,
        }  # fmt: skip
        Path(os.environ["SYMGROUND_EMULATE_COUNTS"]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
