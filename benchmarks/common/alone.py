"""What measurements that are commands of their own share: the option --out, and the machine in the file."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any

from benchmarks.common.options import new_file
from benchmarks.conftest import pytest_benchmark_update_machine_info


def parser(doc: str | None) -> ArgumentParser:
    """A parser with the module's docstring as its description, and the option --out."""
    found = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    found.add_argument("--out", type=new_file, required=True, help="the JSON file")
    return found


def machine() -> dict[str, Any]:
    """The machine, as pytest-benchmark's files have it."""
    import cpuinfo

    known = cpuinfo.get_cpu_info()
    found: dict[str, Any] = {"cpu": {name: known.get(name) for name in ("brand_raw", "count", "arch")}}
    pytest_benchmark_update_machine_info(None, found)
    return found
