"""What the user has switched off: ``SYMGROUND_DISABLE`` names implementations, separated by commas."""

from __future__ import annotations

import os

VARIABLE = "SYMGROUND_DISABLE"
#: Implementations by their names; also the C++ extension, its CUDA part (``cuda``), and the flash-attn package,
#: without which ``flash`` is PyTorch's own. What has no other to take its place cannot be switched off.
NAMES = ("cpu", "extension", "cuda", "triton", "flash", "flash_attn", "mamba_ssm", "causal_conv1d", "torch")


def read(text: str) -> frozenset[str]:
    """The names in ``text``.

    Raises:
        ValueError: a name is unknown; it says which are known.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise ValueError(f"{VARIABLE}: expected names among {', '.join(NAMES)}, separated by commas; got {name!r}")
    return frozenset(names)


#: Read once: a compiled graph uses it as a constant.
DISABLED = read(os.environ.get(VARIABLE, ""))


def refusal(name: str) -> Exception | None:
    """The error of an implementation that is switched off, else None."""
    return RuntimeError(f"impl: {name!r} is switched off by {VARIABLE}") if name in DISABLED else None
