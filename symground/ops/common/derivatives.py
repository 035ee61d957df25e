"""What the references are made of where plain PyTorch has no such function, with every derivative that it would have.

Each is an autograd function with derivatives of any order, forward mode, and torch.func's transforms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from symground.ops.common.tensors import without_autocast


def differentiable(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """What applies ``function``, whose static method ``tangent`` is its derivative in forward mode.

    A graph that torch.compile traces whole takes no function with a forward mode; it gets the same without one.
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
    """0 in the shape of a probe, with the probe's own derivative: what it holds, NaN included, is not read."""
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
        # A transposed y, as a weight is, gets a gradient of its own layout: another would be copied into that.
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
    """x @ y of matrices, which autocast changes neither here nor on the way back."""
    found: Tensor = _product(x, y)
    return found
