"""Requirements of the implementations: each check returns an exception if tensors or the machine fail it, else None."""

from __future__ import annotations

import importlib.metadata
import warnings
from functools import cache

import torch
from torch import Tensor

from symground.errors import import_error
from symground.ops.common import disabled, extension
from symground.ops.common.compiled import constant


def nothing(like: Tensor) -> Exception | None:
    return None


def cpu(like: Tensor) -> Exception | None:
    if like.device.type != "cpu":
        return ValueError(f"impl: 'cpu' expected tensors on the CPU, got {like.device}")
    return None


def cuda_extension(like: Tensor) -> Exception | None:
    if like.device.type != "cuda":
        return ValueError(f"impl: 'cuda' expected tensors on a GPU, got {like.device}")
    if not _has_cuda_part():
        return RuntimeError("impl: 'cuda' needs the CUDA part of the extension, which is not built: symground build")
    return None


def package(impl: str, module: str, like: Tensor) -> Exception | None:
    """For another library's GPU kernels; ``module`` is the module of it that is imported."""
    if like.device.type != "cuda":
        return ValueError(f"impl: {impl!r} expected tensors on a GPU, got {like.device}")
    if like.dtype == torch.float64:
        return ValueError(f"impl: {impl!r} expected float32, float16 or bfloat16, got {like.dtype}")
    if not imports(module):
        name = impl.replace("_", "-")
        # Its build wants the torch that is installed.
        return _lacking(impl, name, module, f"pip install --no-build-isolation {name}")
    return None


def triton(like: Tensor) -> Exception | None:
    device, dtype, impl = like.device.type, like.dtype, "triton"
    if impl in disabled.DISABLED:
        return disabled.refusal(impl)
    if dtype == torch.float64:
        return ValueError(f"impl: {impl!r} expected float32, float16 or bfloat16, got {dtype}")
    if device not in ("cpu", "cuda"):
        return ValueError(f"impl: {impl!r} expected tensors on a GPU, got {like.device}")
    if device == "cuda" and not torch.version.hip and (old := before_ampere(impl, like.device.index)):
        return old
    if not imports("triton"):
        return _lacking(impl, "Triton", "triton", "pip install triton")
    if device == "cpu" and not _interpreting():
        return RuntimeError(
            "impl: 'triton' expected tensors on a GPU, got cpu; on a CPU it runs in Triton's interpreter, with "
            "TRITON_INTERPRET=1 set before Triton is imported"
        )
    if device == "cpu" and dtype == torch.bfloat16:
        return ValueError("impl: Triton's interpreter multiplies bfloat16 wrongly; expected float32 or float16")
    return None


def _lacking(impl: str, name: str, module: str, install: str) -> Exception:
    broken = _broken(module)
    why = f"which is installed but does not import here: {broken}" if broken else f"which is not installed ({install})"
    return RuntimeError(f"impl: {impl!r} needs {name}, {why}")


def before_ampere(impl: str, index: int | None) -> Exception | None:
    """For kernels that need a GPU of compute capability 8.0."""
    major, minor = capability(index)
    if major >= 8:
        return None
    return RuntimeError(
        f"impl: {impl!r} needs a GPU of compute capability 8.0 or later, got {major}.{minor}; impl='torch' runs there"
    )


# These do not change while the process runs: a compiled graph uses them as constants.


@constant
def _has_cuda_part() -> bool:
    return extension.runs_on(torch.device("cuda"))


@constant
def imports(module: str) -> bool:
    """Whether a package imports. One that is installed but fails to import is reported once in a warning."""
    return _imports(module)


@cache
def _imports(module: str) -> bool:
    broken = import_error(module)
    if broken:
        package = module.partition(".")[0]
        message = f"{package} is installed but does not import here ({broken}); it is not used"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return broken is None


@constant
def _broken(module: str) -> str | None:
    return import_error(module)


@constant
def capability(index: int | None) -> tuple[int, int]:
    """The compute capability of a GPU; a tensor's device has an index, for which it is asked once."""
    return torch.cuda.get_device_capability() if index is None else _capability(index)


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@constant
def flash_in_torch() -> bool:
    """Whether this torch was built with a flash kernel for GPUs."""
    return torch.backends.cuda.is_flash_attention_available()


@constant
def version(package: str) -> tuple[int, ...]:
    """The version of an installed package, its first two numbers; (0, 0) if it says none."""
    return _version(package)


@cache
def _version(package: str) -> tuple[int, ...]:
    try:
        numbers = importlib.metadata.version(package).split(".")[:2]
        return tuple(map(int, numbers))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return (0, 0)


@constant
def _interpreting() -> bool:
    """Whether Triton was imported with TRITON_INTERPRET=1. Setting it later changes only half of Triton."""
    from triton import language
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(language.sum, InterpretedFunction)
