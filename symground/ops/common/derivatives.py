"""Functions that the references use because plain PyTorch has no function with all of their derivatives.

Each is an autograd function that supports derivatives of any order, forward mode, and torch.func's transforms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from symground.ops.common.tensors import without_autocast


def differentiable(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """A callable that applies ``function``; its static method ``tangent`` is its forward-mode derivative.

    torch.compile cannot trace a function with a forward mode in a full graph, so it gets the same function without.
    """
    both = type(function.__name__, (function,), {"jvp": staticmethod(function.tangent)})  # type: ignore[attr-defined]

    def apply(*args: Any) -> Any:
        return (function if torch.compiler.is_compiling() else both).apply(*args)  # type: ignore[attr-defined]

    return apply


class _AtZero(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(probe: Tensor) -> Tensor:
        return torch.zeros_like(probe)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]

    @staticmethod
    def tangent(ctx: Any, probe: Tensor) -> Tensor:
        return probe.clone()


_at_zero = differentiable(_AtZero)


def at_zero(probe: Tensor) -> Tensor:
    """0 in the shape of a probe, with the probe's own derivative. The probe's values are not read: they may be NaN."""
    zero: Tensor = _at_zero(probe)
    return zero


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return _matmul(x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x, y), (grad,) = ctx.saved_tensors, grads
        of_x, of_y = ctx.needs_input_grad
        # The gradient of a transposed y, such as a weight, gets y's layout; otherwise autograd would copy it.
        across = y.stride(-1) > y.stride(-2)
        return (
            product(grad, y.mT).sum_to_size(x.shape) if of_x else None,
            (product(grad.mT, x).mT if across else product(x.mT, grad)).sum_to_size(y.shape) if of_y else None,
        )

    @staticmethod
    def tangent(ctx: Any, of_x: Tensor | None, of_y: Tensor | None) -> Tensor | None:
        x, y = ctx.saved_tensors
        parts = [product(of_x, y)] if of_x is not None else []
        parts += [product(x, of_y)] if of_y is not None else []
        return sum(parts[1:], parts[0])


_matmul = without_autocast(torch.matmul)
_product = differentiable(_Product)


def product(x: Tensor, y: Tensor) -> Tensor:
    """The matrix product x @ y; autocast changes neither its forward nor its backward pass."""
    found: Tensor = _product(x, y)
    return found
