"""Where the Triton kernels are tested: on a GPU if there is one, else on the CPU in Triton's interpreter.

With `-p tests.ptx.plugin` they are compiled, and run on the CPU by an emulator.
Import it before anything that imports Triton: the interpreter is chosen when Triton is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

#: The architecture that is emulated, if one is.
EMULATED = os.environ.get("SYMGROUND_EMULATE")
CUDA = torch.cuda.is_available() and not EMULATED
INTERPRETED = not CUDA and not EMULATED
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton is not installed: kernel tests")

DEVICE = "cuda" if CUDA else "cpu"
#: The interpreter multiplies bfloat16 wrongly.
DTYPES = [torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16])]


@pytest.fixture(autouse=True)
def fresh_memory_is_nan() -> Iterator[None]:
    """Fill fresh memory with NaN, so that numbers a kernel does not write are found. The emulator does so itself."""
    if EMULATED:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
