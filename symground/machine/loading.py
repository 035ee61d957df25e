"""Whether a package or a part of the extension loads here, and why not."""

from __future__ import annotations

from symground.errors import import_error

#: Package → the module that must import.
_MODULES = {
    "triton": "triton", "flash_attn": "flash_attn.flash_attn_interface", "causal_conv1d": "causal_conv1d",
    "mamba_ssm": "mamba_ssm.ops.triton.ssd_combined",
}  # fmt: skip


def loaded(name: str) -> tuple[str, str]:
    """The status of a package that is installed, or of a part of the extension, and why."""
    if name in _MODULES:
        broken = import_error(_MODULES[name])
        return (
            ("right", "it imports") if broken is None else ("wrong", f"it is installed and does not import ({broken})")
        )

    import torch  # not for a package, which may break it

    from symground.ops.common import build, extension

    path = build.HERE / (build.CUDA_FILE if name == "cuda" else build.FILE)
    if not path.exists():
        return "absent", "it is not built: symground build"
    if name == "cuda" and extension.library is None:
        return "absent", "it adds to the extension, which is not used"
    given = ("symground_CUDA", torch.version.cuda) if name == "cuda" else ()
    operators, cause = extension.attempt(path, *given)
    if operators is None:
        return "wrong", f"{path} does not load ({cause}); a build for this torch may: symground build"
    return "right", "it loads"
