"""Autograd of the ops on a vocabulary head, which every implementation shares.

An implementation supplies two or three functions without derivatives (`Backend`); `register` makes differentiable ops
of torch.library from them. None of them materialises the N·V logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from symground.ops.common.derivatives import product
from symground.ops.common.differentiated import refusing_derivatives
from symground.ops.common.register import Derivative, Op
from symground.ops.common.tensors import accumulation_dtype
from symground.ops.vocabulary.lens import in_one_pass
from symground.ops.vocabulary.reference import logits

_HEAD = ["Tensor hidden", "Tensor weight", "Tensor? bias"]
_OF = ["bool of_hidden", "bool of_weight", "bool of_bias"]


class Backend(NamedTuple):
    """The functions of an implementation, for candidates int64 [K] or [N,K].

    A row whose first candidate is -1 has no candidates: its surprisals are 0, its level and total may be anything, and
    its gradient in the backward pass must be 0.

    Attributes:
        forward: (hidden, weight, bias, candidates) → surprisal [N,K], and [N,2] a level near the largest logit z and
            the total Σ_v exp(z[n,v] - level), in the accumulation dtype.
        backward: (grad [N,K], hidden, weight, bias, candidates, the forward pass's levels and totals, three bools) →
            the gradients of hidden, weight and bias, None where the bool is False. With p = softmax, ∂L/∂z[n,v] =
            p[n,v] · Σ_k grad[n,k] - Σ_k grad[n,k] · [v = candidate k].
        loss: (hidden, weight, bias, targets [N], three bools) → the sum of the targets' surprisals, and its gradients
            as in backward; a target of -1 does not count. The inputs are in the accumulation dtype. If it is None, the
            loss is computed by the other two.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor | None, ...]]
    loss: Callable[..., tuple[Tensor | None, ...]] | None = None


class Ops(NamedTuple):
    """An implementation of the public ops, which expects checked arguments."""

    candidate_surprisal: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    lens_surprisal: Callable[..., Tensor]
    linear_cross_entropy: Callable[[Tensor, Tensor, Tensor, Tensor | None, int, str], Tensor]
    refuses: Callable[[Tensor], Exception | None]


def register(impl: str, backend: Backend, refuses: Callable[[Tensor], Exception | None], cpu_only: bool = False) -> Ops:
    """Register ``backend`` as ``symground::candidate_surprisal_<impl>`` and its companions."""
    op = partial(Op, impl=impl, cpu_only=cpu_only, is_empty=_is_empty)

    backward = op(
        "candidate_surprisal_backward", backend.backward,
        ["Tensor grad", *_HEAD, "Tensor candidates", "Tensor norm", *_OF], _gradients, returns=3,
        is_empty=lambda _grad, *rest: _is_empty(*rest),
    )  # fmt: skip
    forward = op(
        "candidate_surprisal", backend.forward, [*_HEAD, "Tensor candidates"], _outputs, returns=2,
        derivative=Derivative(_keep, lambda ctx, needs, grad, _: _through(backward, ctx, needs, grad)),
    )  # fmt: skip
    loss = None
    if backend.loss is not None:
        loss = op(
            "linear_cross_entropy", backend.loss, [*_HEAD, "Tensor targets", *_OF], _loss, returns=4,
            derivative=Derivative(_keep_gradients, lambda ctx, needs, grad, *_: _through_loss(ctx, grad)),
        )  # fmt: skip

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

    return Ops(
        candidate_surprisal=surprisal,
        # Again, for what comes in with the lens's norm, which is a function.
        lens_surprisal=in_one_pass(refusing_derivatives("lens_surprisal", impl, surprisal)),
        linear_cross_entropy=cross_entropy,
        refuses=refuses,
    )


# The ops' results where there is nothing to read: no row, or no vocabulary.


def _is_empty(hidden: Tensor, weight: Tensor, *rest: Any) -> bool:
    return not (len(hidden) and len(weight))


def _outputs(hidden: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor) -> tuple[Tensor, Tensor]:
    nothing = hidden.new_zeros(hidden.shape[0], candidates.shape[-1], dtype=accumulation_dtype(hidden))
    return nothing, nothing.new_zeros(hidden.shape[0], 2)


def _zeros(inputs: Sequence[Tensor | None], of: Sequence[bool]) -> tuple[Tensor | None, ...]:
    return tuple(
        x.new_zeros(x.shape) if x is not None and wanted else None for x, wanted in zip(inputs, of, strict=True)
    )


def _gradients(
    grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor, norm: Tensor, *of: bool
) -> tuple[Tensor | None, ...]:
    return _zeros((hidden, weight, bias), of)


def _loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *of: bool
) -> tuple[Tensor | None, ...]:  # fmt: skip
    return hidden.new_zeros(()), *_zeros((hidden, weight, bias), of)


def _keep(ctx: Any, output: tuple[Tensor, Tensor], *inputs: Any) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _through(backward: Op, ctx: Any, needs: list[bool], grad: Tensor) -> tuple[Tensor | None, ...]:
    return *backward(grad, *ctx.saved_tensors, *needs[:3]), None


def _keep_gradients(ctx: Any, output: tuple[Tensor, ...], *inputs: Any) -> None:
    """Save the gradients, which the loss computes in its forward pass."""
    ctx.of = inputs[4:]
    ctx.save_for_backward(*inputs[:4], *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _through_loss(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *given, of_hidden, of_weight, of_bias = ctx.saved_tensors
    made = (of_hidden, of_weight, of_bias)
    # With create_graph, a derivative of the gradients may be requested, but those of the forward pass have no graph.
    found = _scaled(grad, *given, *made) if torch.is_grad_enabled() else [grad * x for x in made]
    return *(x if wanted else None for x, wanted in zip(found, ctx.of, strict=True)), None, None, None, None


class _Scaled(torch.autograd.Function):
    """grad times the gradients of the sum of surprisals, with the derivatives of that product.

    In the backward pass, φ is the inner product of these gradients with the incoming ones. It equals the derivative of
    grad · loss in the incoming direction, and is written out here with all logits.
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
            # Views, so that only they are differentiated: the incoming gradients may depend on the inputs too.
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
    """The change of the logits, [N,V], for changes of hidden, weight and bias; an empty tensor is no change."""
    change = hidden.new_zeros(len(hidden), len(weight))
    if of_hidden.numel():
        change = change + product(of_hidden, weight.mT)
    if of_weight.numel():
        change = change + product(hidden, of_weight.mT)
    return change + of_bias if of_bias.numel() else change
