"""The ``triton`` implementation of surprisal: the kernels of `symground.kernels`, imported at first use."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops.common import needs
from symground.ops.vocabulary.autograd import Backend, register

refuses = needs.triton


def _forward(hidden: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor) -> tuple[Tensor, Tensor]:
    from symground.kernels.vocabulary import surprisal as vocabulary

    with torch.cuda.device_of(hidden):
        head = vocabulary.Head(hidden, weight, bias, candidates)
        lse = vocabulary.log_sum_exp(head)
        return vocabulary.surprisal(head, lse), torch.stack([lse, torch.ones_like(lse)], 1)


def _backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor, norm: Tensor, *of: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    from symground.kernels.vocabulary import surprisal as vocabulary

    with torch.cuda.device_of(hidden):
        head = vocabulary.Head(hidden, weight, bias, candidates)
        found: tuple[Tensor | None, Tensor | None, Tensor | None] = vocabulary.gradients(
            head, grad, norm[:, 0].contiguous(), *of
        )
    return found


backend = Backend(forward=_forward, backward=_backward)
ops = register("triton", backend, refuses)
