"""Surprisal under a vocabulary head: plain kernels in, a registered and differentiable op out.

An implementation brings two functions without autograd (`HeadKernels`); none of them stores N·V numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground.ops._precision import accumulation_dtype

_HEAD = "Tensor hidden, Tensor weight, Tensor? bias, Tensor candidates"


class HeadKernels(NamedTuple):
    """What an implementation computes, for candidates int64 [K] or [N,K].

    A row whose first candidate is -1 has none: its surprisals are 0, its log-sum-exp is anything, and the gradient that
    comes back to it must be 0.

    Attributes:
        forward: (hidden, weight, bias, candidates) → surprisal [N,K] and the log-sum-exp over the vocabulary [N], in
            the accumulation dtype.
        backward: (grad [N,K], hidden, weight, bias, candidates, lse, three bools) → the gradients of hidden, weight and
            bias, None where the bool is False. With p = softmax, ∂L/∂z[n,v] = p[n,v] · Σ_k grad[n,k] - Σ_k grad[n,k] ·
            [v = candidate k].
        loss: (hidden, weight, bias, targets [N], three bools) → the sum of the targets' surprisals, and its gradients
            as of backward; a target of -1 is none. For inputs in the accumulation dtype; None where there is no such
            kernel, and the loss is made of the other two.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor | None, Tensor | None, Tensor | None]]
    loss: Callable[..., tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]] | None = None


class Registered(NamedTuple):
    """The implementations to put in the tables of the public ops."""

    surprisal: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    cross_entropy: Callable[[Tensor, Tensor, Tensor, Tensor | None, int, str], Tensor]


def register(name: str, kernels: HeadKernels, device_types: str | None) -> Registered:
    """Register ``kernels`` as ``symground::candidate_surprisal_<name>`` and its backward."""

    def define(op: str, function: Callable[..., Any], schema: str) -> Any:
        return torch.library.custom_op(
            f"symground::{op}_{name}", function, mutates_args=(), device_types=device_types, schema=schema
        )

    def gradients(*args: Any) -> tuple[Tensor, ...]:
        # A registered op returns tensors only: what was not asked is empty.
        return tuple(args[0].new_empty(0) if x is None else x for x in kernels.backward(*args))

    forward = define("candidate_surprisal", kernels.forward, f"({_HEAD}) -> (Tensor, Tensor)")
    backward = define(
        "candidate_surprisal_backward",
        gradients,
        f"(Tensor grad, {_HEAD}, Tensor lse, bool of_hidden, bool of_weight, bool of_bias) -> (Tensor, Tensor, Tensor)",
    )
    _fakes(forward, backward)
    forward.register_autograd(_backward_through(backward), setup_context=_setup)
    loss = None if kernels.loss is None else _registered_loss(define, kernels.loss)

    def surprisal(hidden: Tensor, weight: Tensor, candidates: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = forward(hidden, weight, bias, candidates.long())[0]
        return out

    def cross_entropy(
        hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, reduction: str
    ) -> Tensor:
        kept = targets != ignore_index
        asked = torch.where(kept, targets.long(), -1)
        wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias)]
        if loss is not None and any(wanted) and hidden.dtype == accumulation_dtype(hidden):
            total: Tensor = loss(hidden, weight, bias, asked, *wanted)[0]
            return total if reduction == "sum" else total / kept.sum().clamp(min=1)
        total = torch.where(kept, surprisal(hidden, weight, asked[:, None], bias)[:, 0], 0.0).sum()
        return total if reduction == "sum" else total / kept.sum().clamp(min=1)

    return Registered(surprisal, cross_entropy)


def _registered_loss(define: Callable[..., Any], kernel: Callable[..., Any]) -> Any:
    """The loss as an op whose gradients are made on the way there, and scaled on the way back."""

    def run(hidden: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        return tuple(hidden.new_empty(0) if x is None else x for x in kernel(hidden, *rest))

    op = define(
        "linear_cross_entropy",
        run,
        f"({_HEAD.replace('candidates', 'targets')}, bool of_hidden, bool of_weight, bool of_bias) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
    )

    @op.register_fake  # type: ignore[untyped-decorator]
    def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *of: bool) -> tuple[Tensor, ...]:
        inputs = zip((hidden, weight, bias), of, strict=True)
        gradients = (hidden.new_empty(x.shape if wanted and x is not None else 0) for x, wanted in inputs)
        return hidden.new_empty(()), *gradients

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.of = inputs[4:]
        ctx.save_for_backward(*output[1:])
        ctx.mark_non_differentiable(*output[1:])

    def back(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        found = (grad * x if wanted else None for x, wanted in zip(ctx.saved_tensors, ctx.of, strict=True))
        return *found, None, None, None, None

    op.register_autograd(back, setup_context=keep)
    return op


def _fakes(forward: Any, backward: Any) -> None:
    """Shapes and dtypes without values, for compiled graphs."""

    @forward.register_fake  # type: ignore[untyped-decorator]
    def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor) -> tuple[Tensor, Tensor]:
        rows, dtype = hidden.shape[0], accumulation_dtype(hidden)
        return hidden.new_empty(rows, candidates.shape[-1], dtype=dtype), hidden.new_empty(rows, dtype=dtype)

    @backward.register_fake  # type: ignore[untyped-decorator]
    def _(
        grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor, lse: Tensor, *of: bool
    ) -> tuple[Tensor, ...]:
        return tuple(
            torch.empty_like(x, memory_format=torch.contiguous_format)
            if wanted and x is not None
            else grad.new_empty(0)
            for x, wanted in zip((hidden, weight, bias), of, strict=True)
        )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward_through(backward: Any) -> Callable[..., tuple[Tensor | None, ...]]:
    def run(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad[:3]
        found = backward(grad, *ctx.saved_tensors, *need)
        return *(x if wanted else None for x, wanted in zip(found, need, strict=True)), None

    return run
