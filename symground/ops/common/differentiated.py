"""The derivatives that are being taken of an op's tensors while it runs, and who does not have them.

Second derivatives are not among these: they are requested of the op's backward pass, which refuses them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from symground.ops.common.probes import NO_TANGENT, GradientProbes


def any_taken() -> bool:
    """Whether forward mode or a transform of torch.func is active. A compiled graph takes torch.func's its own way."""
    return forward_ad._current_level >= 0 or _transforms_are_active()


def no_derivative(op: str, impl: str, given: Iterable[Any]) -> NotImplementedError | None:
    """Why the implementation does not run on these arguments: a derivative is being taken that it lacks. Else None.

    Registered ops have no forward mode, and torch would use tangents of 0. Within a transform of torch.func torch's own
    error would name neither the op nor a way out.
    """
    if not any_taken():
        return None
    if impl == "reference":
        flows = [x.flow for x in given if isinstance(x, GradientProbes) and x.flow is not None]
        return NotImplementedError(NO_TANGENT) if any(_tangent(x) is not None for x in flows) else None
    tensors = list(_tensors(given))
    if forward_ad._current_level >= 0 and any(_may_be_dual(x) for x in tensors):
        return NotImplementedError(
            f"ops.{op}: impl {impl!r} has no derivative in forward mode (torch.func.jvp, jacfwd, hessian, "
            "forward_ad); impl='reference', which is plain PyTorch, has it"
        )
    if _transforms_are_active() and _are_tracked(tensors):
        return NotImplementedError(
            f"ops.{op}: impl {impl!r} has no derivative in torch.func (grad, vjp, jacrev); torch.autograd.grad and "
            "backward() have it, and so has impl='reference', which is plain PyTorch"
        )
    return None


def refusing_derivatives(op: str, impl: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, a function of the implementation, which raises what `no_derivative` gives for its arguments."""

    def guarded(*args: Any) -> Any:
        refused = no_derivative(op, impl, args)
        if refused is not None:
            raise refused
        return run(*args)

    return guarded


def _transforms_are_active() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _tangent(x: Tensor) -> Tensor | None:
    return forward_ad.unpack_dual(x).tangent if forward_ad._current_level >= 0 else None


def _may_be_dual(x: Tensor) -> bool:
    """Inside another transform of torch.func a tensor does not show whether it is a dual number: it counts as one."""
    return len(_functorch.get_interpreter_stack() or ()) > 1 or _tangent(x) is not None


def _are_tracked(tensors: Iterable[Tensor]) -> bool:
    """Whether a transform of torch.func, from the innermost on, records what is done with one of the tensors."""
    levels = {level for x in tensors for level in _levels(x)}
    records = torch.is_grad_enabled()
    for transform in reversed(_functorch.get_interpreter_stack() or ()):
        if transform.key() == _functorch.TransformType.Grad:
            if records and transform.level() in levels:
                return True
            records = records and _functorch.CGradInterpreterPtr(transform).prevGradMode()
    return False


def _levels(x: Tensor) -> Iterator[int]:
    """The levels of the transforms that record what is done with a tensor."""
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_gradtrackingtensor(x) and x.requires_grad:
            yield _functorch.maybe_get_level(x)
        x = _functorch.get_unwrapped(x)


def _tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    for x in args:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, tuple):
            yield from _tensors(x)
