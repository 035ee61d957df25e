"""CUDA sources compiled by the C++ compiler, with nvcc's headers, so that their host code runs without a GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from symground.ops.common import build


def compiled_for_the_host(source: str, folder: Path, *flags: str) -> Path:
    """The library that ``source``, the text of a .cu file, becomes."""
    command, nvcc, torch = build.compiler(), build.nvcc(), build.torch_folder()
    assert command
    assert nvcc
    assert torch
    printed = subprocess.run([nvcc, "-E", "-x", "cu", "-v", "-"], input="", capture_output=True, text=True, check=False)
    found = re.search(r'"-I([^"]+)"', printed.stderr)
    assert found, printed.stderr
    text, library = folder / "source.cpp", folder / "on_host.so"
    text.write_text(source, encoding="utf-8")
    options = ["-O1", "-std=c++20", "-fPIC", "-shared", "-ffp-contract=off", "-DUSE_CUDA", build._ABI, *flags]
    headers = [f"-I{folder}" for folder in (torch / "include", build.SOURCES / "gate", found[1])]
    compiling = [*command, *options, *headers, str(text), f"-L{torch / 'lib'}", "-ltorch_cpu", "-o", str(library)]
    done = subprocess.run(compiling, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library
