"""The tables of shipped configurations have an entry for everything that an op allows."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: kernel tests")

import symground.kernels
from symground.kernels.common.configs import Tiles, shipped

FOLDER = Path(next(iter(symground.kernels.__path__)))


def tables() -> dict[str, Tiles]:
    """The tables of all kernels, each from its own file."""
    found: dict[str, Tiles] = {}
    for file in sorted(FOLDER.glob("*/*.py")):
        module = importlib.import_module(f"symground.kernels.{file.parent.name}.{file.stem}")
        found |= getattr(module, "TILES", {})
    return found


def looked_up() -> set[str]:
    """The names by which the kernels' launchers look for a configuration."""
    calls = (node for file in FOLDER.glob("*/*.py") for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = [call.args[0] for call in calls if isinstance(call, ast.Call) and ast.unparse(call.func) == "config_of"]
    return {x.value for name in names for x in ast.walk(name) if isinstance(x, ast.Constant)}


@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_90", "sm_100", "gfx942", "interpreter"])
def test_every_kernel_has_a_configuration_for_every_head_size_and_dtype(architecture: str) -> None:
    kernels = tables()
    assert {*kernels} == looked_up() | {"shared_candidates", "own_candidates"}  # these two have one configuration
    for kernel in kernels:
        for block_d in (16, 32, 64, 128, 256, 512, 1024):
            for element_size in (2, 4):
                config = shipped(kernel, kernels, architecture, block_d, element_size)
                assert min(config.BM, config.BN) >= 16


@pytest.mark.parametrize(("given", "used"), [(None, "True"), ("0", "False"), ("1", "True")])
def test_multiply_adds_are_fused_unless_the_user_says_otherwise(given: str | None, used: str) -> None:
    """As in the table of resources, and without Triton's warning that its default will change."""
    environment = {**os.environ, "TRITON_DEFAULT_FP_FUSION": given or ""}
    if given is None:
        del environment["TRITON_DEFAULT_FP_FUSION"]
    program = "import triton, symground.kernels.common.configs; print(triton.knobs.language.default_fp_fusion)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.strip() == used
