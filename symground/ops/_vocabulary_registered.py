"""Surprisal under a vocabulary head: plain kernels in, a registered and differentiable op out.

An implementation brings two functions without autograd (`HeadKernels`); none of them stores N·V numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground.ops._functions import product
from symground.ops._library import define
from symground.ops._precision import accumulation_dtype
from symground.ops._vocabulary import logits

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
    backward: Callable[..., tuple[Tensor | None, ...]]
    loss: Callable[..., tuple[Tensor | None, ...]] | None = None


class Registered(NamedTuple):
    """The implementations to put in the tables of the public ops."""

    surprisal: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    cross_entropy: Callable[[Tensor, Tensor, Tensor, Tensor | None, int, str], Tensor]


def register(name: str, kernels: HeadKernels, device_types: str | None) -> Registered:
    """Register ``kernels`` as ``symground::candidate_surprisal_<name>`` and its backward."""
    kernels = _of_any_size(kernels)

    def defined(op: str, function: Callable[..., Any], schema: str) -> Any:
        return define(op, name, function, schema, device_types)

    def gradients(*args: Any) -> tuple[Tensor, ...]:
        # A registered op returns tensors only: what was not asked is empty.
        return tuple(args[0].new_empty(0) if x is None else x for x in kernels.backward(*args))

    forward = defined("candidate_surprisal", kernels.forward, f"({_HEAD}) -> (Tensor, Tensor)")
    backward = defined(
        "candidate_surprisal_backward",
        gradients,
        f"(Tensor grad, {_HEAD}, Tensor lse, bool of_hidden, bool of_weight, bool of_bias) -> (Tensor, Tensor, Tensor)",
    )
    _fakes(forward, backward)
    forward.register_autograd(_backward_through(backward), setup_context=_setup)
    loss = None if kernels.loss is None else _registered_loss(defined, kernels.loss)

    def surprisal(hidden: Tensor, weight: Tensor, candidates: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = forward(hidden, weight, bias, candidates)[0]
        return out

    def cross_entropy(
        hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, reduction: str
    ) -> Tensor:
        kept = targets != ignore_index
        asked = torch.where(kept, targets, -1)
        wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias)]
        if loss is not None and any(wanted) and hidden.dtype == accumulation_dtype(hidden):
            total: Tensor = loss(hidden, weight, bias, asked, *wanted)[0]
            return total if reduction == "sum" else total / kept.sum().clamp(min=1)
        total = torch.where(kept, surprisal(hidden, weight, asked[:, None], bias)[:, 0], 0.0).sum()
        return total if reduction == "sum" else total / kept.sum().clamp(min=1)

    return Registered(surprisal, cross_entropy)


def _of_any_size(kernels: HeadKernels) -> HeadKernels:
    """``kernels``, which run only where there are rows and a vocabulary: without, surprisal and gradients are 0."""
    loss_of_some = kernels.loss

    def forward(hidden: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor) -> tuple[Tensor, Tensor]:
        if len(hidden) and len(weight):
            return kernels.forward(hidden, weight, bias, candidates)
        nothing = hidden.new_zeros(len(hidden), candidates.shape[-1], dtype=accumulation_dtype(hidden))
        return nothing, nothing.new_zeros(len(hidden))

    def zeros(inputs: Sequence[Tensor | None], of: Sequence[bool]) -> tuple[Tensor | None, ...]:
        return tuple(
            x.new_zeros(x.shape) if x is not None and wanted else None for x, wanted in zip(inputs, of, strict=True)
        )

    def backward(
        grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor, lse: Tensor, *of: bool
    ) -> tuple[Tensor | None, ...]:
        if len(hidden) and len(weight):
            return kernels.backward(grad, hidden, weight, bias, candidates, lse, *of)
        return zeros((hidden, weight, bias), of)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor | None, ...]:
        assert loss_of_some is not None
        if len(hidden) and len(weight):
            return loss_of_some(hidden, weight, bias, *rest)
        return hidden.new_zeros(()), *zeros((hidden, weight, bias), rest[1:])

    return HeadKernels(forward, backward, None if loss_of_some is None else loss)


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
        ctx.save_for_backward(*inputs[:4], *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    def back(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        *given, of_hidden, of_weight, of_bias = ctx.saved_tensors
        made = (of_hidden, of_weight, of_bias)
        # With create_graph they may be asked for a derivative of their own, which what was made on the way lacks.
        found = _scaled(grad, *given, *made) if torch.is_grad_enabled() else [grad * x for x in made]
        return *(x if wanted else None for x, wanted in zip(found, ctx.of, strict=True)), None, None, None, None

    op.register_autograd(back, setup_context=keep)
    return op


class _Scaled(torch.autograd.Function):
    """grad times the gradients of the sum of surprisals, with the derivatives of that product.

    Going back, φ is its inner product with what comes: the derivative of grad · loss in that direction, written out
    with all logits.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *made: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(grad * x for x in made)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:5])

    @staticmethod
    def backward(ctx: Any, *came: Tensor) -> tuple[Tensor | None, ...]:
        *given, targets = ctx.saved_tensors
        with torch.enable_grad():
            # Views, so that the derivative is of these alone: what came may depend on them too.
            views: list[Any] = [x if x is None else x.view_as(x) for x in given]
            grad, hidden, weight, bias = views
            inputs = [x for x, need in zip(views, ctx.needs_input_grad, strict=False) if need]
            change = _change_of_logits(hidden, weight, *came)
            one_hot = targets[:, None] == torch.arange(len(weight), device=targets.device)
            beyond = logits(hidden, weight, bias).softmax(-1) - one_hot.to(grad.dtype)
            phi = grad * torch.where((targets >= 0)[:, None], beyond * change, 0).sum()
        found = iter(torch.autograd.grad(phi, inputs, create_graph=torch.is_grad_enabled()))
        return *(next(found) if need else None for need in ctx.needs_input_grad[:4]), *(None,) * 4


_scaled = _Scaled.apply


def _change_of_logits(hidden: Tensor, weight: Tensor, of_hidden: Tensor, of_weight: Tensor, of_bias: Tensor) -> Tensor:
    """[N,V] for changes of hidden, weight and bias, each of which is empty where its gradient is not made."""
    change = hidden.new_zeros(len(hidden), len(weight))
    if of_hidden.numel():
        change = change + product(of_hidden, weight.mT)
    if of_weight.numel():
        change = change + product(hidden, of_weight.mT)
    return change + of_bias if of_bias.numel() else change


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
