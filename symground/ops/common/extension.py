"""The C++ extension (csrc/), if it is built. It is loaded when symground.ops is imported, and never compiled here.

``symground build`` builds it. Without it, plain PyTorch (`attention/tiles.py` and its like) gives the same results.
An extension that exists but cannot be used is reported in a warning.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from symground.ops.common.build import CUDA_FILE, FILE, HERE, VERSION
from symground.ops.common.compiled import constant
from symground.ops.common.disabled import DISABLED


def attempt(path: Path, name: str = "symground_C", cuda: str | None = None) -> tuple[Any, str]:
    """The operators ``torch.ops.<name>`` of the library at ``path``, or None and why it cannot be used.

    ``cuda`` is torch's CUDA, such as "13.0", for a library that was built with one.
    """
    try:
        torch.ops.load_library(path)
        operators = getattr(torch.ops, name)
        found = operators.version()
        if found != VERSION:
            return None, f"it is version {found} of the sources, the package expects {VERSION}"
        if cuda is not None and operators.cuda() != int(cuda.partition(".")[0]):
            return None, f"it is built for CUDA {operators.cuda()}, and torch for CUDA {cuda}"
    except (OSError, RuntimeError, AttributeError) as error:
        return None, " ".join(str(error.__cause__ or error).split())
    return operators, ""


def load(path: Path, name: str = "symground_C", cuda: str | None = None) -> Any:
    """The operators of `attempt`, or None. A file that is there and cannot be used is reported in a warning."""
    if not path.exists():
        return None
    operators, cause = attempt(path, name, cuda)
    if operators is None:
        warnings.warn(
            f"{path} is not used, plain PyTorch is (slower, same results): {cause}. To rebuild: symground build",
            RuntimeWarning,
            stacklevel=2,
        )
    return operators


#: None if the extension is not built, or switched off. Read it when an op runs, not at import.
library: Any = None if "extension" in DISABLED else load(HERE / FILE)
#: None without the part for GPUs, which gives the operators of ``library`` their CUDA kernels.
cuda: Any = None
if library is not None and torch.version.cuda and "cuda" not in DISABLED:
    cuda = load(HERE / CUDA_FILE, "symground_CUDA", torch.version.cuda)


def runs_on(device: torch.device) -> bool:
    """Whether the extension has operators for tensors on ``device``."""
    return is_built() and (device.type == "cpu" or (device.type == "cuda" and cuda is not None))


# Whether the extension is built does not change while a process runs: a compiled graph uses it as a constant.


@constant
def is_built() -> bool:
    """Whether the extension has operators for tensors on a CPU."""
    return library is not None
