"""Choosing the implementation of an op: by device when the caller leaves it open, exactly as named otherwise."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from symground.ops import _extension
from symground.ops._autocast import active, without_autocast

F = TypeVar("F", bound=Callable[..., object])

#: For each device type, the implementations that suit it, best first.
_PREFERENCE: dict[str, tuple[str, ...]] = {
    "cuda": ("mamba_ssm", "causal_conv1d", "triton", "cuda", "reference"),
    "cpu": ("cpu", "reference"),
}

#: Implementations that are somebody else's, by what they import.
_PACKAGES = {"mamba_ssm": "mamba_ssm.ops.triton.ssd_combined", "causal_conv1d": "causal_conv1d"}


def choose(op: str, table: Mapping[str, F], impl: str | None, like: Tensor, unasked: Collection[str] = ()) -> F:
    """Return the implementation of ``op`` to run.

    ``impl=None`` takes the best one in ``table`` that can run on the device and dtype of ``like``, but none of
    ``unasked``. A named one is returned as named or refused; it is never replaced by another. What is returned takes a
    tensor first, and does the same under autocast as without.

    Raises:
        ValueError: ``op`` has no such implementation, or it takes no tensors like this.
        RuntimeError: this machine lacks what it needs.
    """
    if impl is None:
        order = _PREFERENCE.get(like.device.type, ("reference",))
        able = (name for name in order if name in table and name not in unasked)
        impl = next(name for name in able if _refusal(name, like) is None)
    elif not isinstance(impl, str) or impl not in table:
        raise ValueError(f"impl: ops.{op} has {', '.join(map(repr, sorted(table)))}; got {impl!r}")
    else:
        refusal = _refusal(impl, like)
        if refusal is not None:
            raise refusal
    run = table[impl]
    if forward_ad._current_level >= 0 and impl != "reference":
        run = _without_tangents(op, impl, run)
    return without_autocast(run) if active(like.device.type) else run


def _without_tangents(op: str, impl: str, run: F) -> F:
    """``run``, which refuses dual numbers: registered ops have no forward mode, and torch would take theirs for 0.

    Within another of torch.func's transforms a tensor does not tell whether it is one, and is taken for one.
    """
    within = len(torch._C._functorch.get_interpreter_stack() or ()) > 1

    def guarded(*args: Any) -> Any:
        for x in _tensors(args):
            if within or forward_ad.unpack_dual(x).tangent is not None:
                raise NotImplementedError(
                    f"ops.{op}: impl {impl!r} has no derivative in forward mode (torch.func.jvp, jacfwd, hessian, "
                    "forward_ad); impl='reference', which is plain PyTorch, has it"
                )
        return run(*args)

    return guarded  # type: ignore[return-value]


def _tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    for x in args:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, tuple):
            yield from _tensors(x)


def _refusal(impl: str, like: Tensor) -> Exception | None:
    """Why an implementation cannot take tensors like this on this machine; None where it can."""
    device, dtype = like.device.type, like.dtype
    if impl == "cpu" and device != "cpu":
        return ValueError(f"impl: 'cpu' expected tensors on the CPU, got {like.device}")
    if impl == "cuda" and device != "cuda":
        return ValueError(f"impl: 'cuda' expected tensors on a GPU, got {like.device}")
    if impl == "cuda" and not _has_cuda_part():
        return RuntimeError("impl: 'cuda' needs the CUDA part of the extension, which is not built: symground build")
    if impl in _PACKAGES:
        if device != "cuda":
            return ValueError(f"impl: {impl!r} expected tensors on a GPU, got {like.device}")
        if dtype == torch.float64:
            return ValueError(f"impl: {impl!r} expected float32, float16 or bfloat16, got {dtype}")
        if not imports(_PACKAGES[impl]):
            package = impl.replace("_", "-")
            return RuntimeError(f"impl: {impl!r} needs {package}, which does not import here (pip install {package})")
    if impl in ("triton", "flash"):
        if dtype == torch.float64 or (impl == "flash" and dtype == torch.float32):
            wanted = "float16 or bfloat16" if impl == "flash" else "float32, float16 or bfloat16"
            return ValueError(f"impl: {impl!r} expected {wanted}, got {dtype}")
        if device not in ("cpu", "cuda") or (impl == "flash" and device != "cuda"):
            return ValueError(f"impl: {impl!r} expected tensors on a GPU, got {like.device}")
        if device == "cuda" and not torch.version.hip and _major(like.device.index) < 8:
            return RuntimeError(f"impl: {impl!r} needs a GPU of compute capability 8.0 or later")
        if not imports("triton"):
            return RuntimeError(f"impl: {impl!r} needs Triton, which does not import here (pip install triton)")
        if device == "cpu" and not _interpreting():
            return RuntimeError(
                "impl: 'triton' expected tensors on a GPU, got cpu; on a CPU it runs in Triton's interpreter, with "
                "TRITON_INTERPRET=1 set before Triton is imported"
            )
        if device == "cpu" and dtype == torch.bfloat16:
            return ValueError("impl: Triton's interpreter multiplies bfloat16 wrongly; expected float32 or float16")
    return None


# What a machine has does not change while it runs: a compiled graph takes these as constants.


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_cuda_part() -> bool:
    return _extension.runs_on(torch.device("cuda"))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def imports(module: str) -> bool:
    """Whether a package imports; one that is installed and does not, being built for another machine, is told once."""
    return _imports(module)


@cache
def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except Exception as error:
        package = module.partition(".")[0]
        if importlib.util.find_spec(package) is not None:
            warnings.warn(
                f"{package} is installed but does not import here ({type(error).__name__}: {error}): going on without",
                RuntimeWarning,
                stacklevel=2,
            )
        return False
    return True


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _major(index: int | None) -> int:
    return torch.cuda.get_device_capability(index)[0]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _interpreting() -> bool:
    """Whether Triton was imported with TRITON_INTERPRET=1: setting it afterwards changes only half of Triton."""
    from triton import language
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(language.sum, InterpretedFunction)
