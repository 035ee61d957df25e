"""``SYMGROUND_DISABLE`` names what the user has switched off, separated by commas. It is read without torch."""

from __future__ import annotations

DISABLE = "SYMGROUND_DISABLE"
#: Implementations by their names; also the C++ extension, its CUDA part (``cuda``), and the flash-attn package,
#: without which ``flash`` is PyTorch's own. What has no other to take its place (``reference``, and ``parts`` of
#: Mamba-2) cannot be switched off.
SWITCHES = ("cpu", "extension", "cuda", "triton", "flash", "flash_attn", "mamba_ssm", "causal_conv1d", "torch")


def switched_off(text: str) -> list[str]:
    """The names in ``text``, the value of the variable.

    Raises:
        ValueError: a name is unknown; it says which are known.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in SWITCHES:
            raise ValueError(
                f"{DISABLE}: expected names among {', '.join(SWITCHES)}, separated by commas; got {name!r}"
            )
    return names
