"""The C++ extension (csrc/), where it has been built: loaded when symground.ops is imported, never compiled here.

``symground build`` builds it. Without it everything works and gives the same results, by the plain PyTorch of
`attention/cpu_tiles.py` and its like; an extension that is there but cannot be used says why in a warning.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from symground.ops.common.build import CUDA_FILE, FILE, HERE, VERSION


def load(path: Path, name: str = "symground_C") -> Any:
    """The operators ``torch.ops.<name>`` of the library at ``path``, or None."""
    if not path.exists():
        return None
    try:
        torch.ops.load_library(path)
        operators = getattr(torch.ops, name)
        found = operators.version()
        if found == VERSION:
            return operators
        cause = f"it is version {found} of the sources, the package wants {VERSION}"
    except (OSError, RuntimeError, AttributeError) as error:
        cause = " ".join(str(error.__cause__ or error).split())
    warnings.warn(
        f"{path} is not used, plain PyTorch is (slower, same results): {cause}. To rebuild: symground build",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


#: None where the extension is not built. Read it when an op runs, not at import.
library: Any = load(HERE / FILE)
#: Not None where its part for GPUs is there too, which gives the operators of ``library`` their CUDA kernels.
cuda: Any = load(HERE / CUDA_FILE, "symground_CUDA") if library is not None and torch.version.cuda else None


def runs_on(device: torch.device) -> bool:
    """Whether the extension has operators for tensors on ``device``."""
    return library is not None and (device.type == "cpu" or (device.type == "cuda" and cuda is not None))


# What is built does not change while a process runs: a compiled graph takes it as a constant.


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_built() -> bool:
    """Whether there are operators for tensors on a CPU."""
    return library is not None
