"""The specification of the vocabulary ops, in plain PyTorch. It materialises the logits, [N,V]."""

from __future__ import annotations

import torch
from torch import Tensor

from symground.ops.common import needs
from symground.ops.common.derivatives import product
from symground.ops.vocabulary.lens import Lens, in_one_pass

refuses = needs.nothing


def candidate_surprisal(hidden: Tensor, weight: Tensor, candidates: Tensor, bias: Tensor | None) -> Tensor:
    log_p = logits(hidden, weight, bias).log_softmax(-1)
    return -log_p.gather(1, candidates.expand(hidden.shape[0], -1))


def lens_surprisal(hidden: Tensor, lens: Lens, weight: Tensor, candidates: Tensor, bias: Tensor | None) -> Tensor:
    if not len(hidden):  # nothing to stack, and yet a gradient for each argument
        return in_one_pass(candidate_surprisal)(hidden, lens, weight, candidates, bias)
    return torch.stack([candidate_surprisal(lens.normed(h), weight, candidates, bias) for h in lens.translated(hidden)])


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, reduction: str
) -> Tensor:
    z = logits(hidden, weight, bias)
    total = torch.nn.functional.cross_entropy(z, targets, ignore_index=ignore_index, reduction="sum")
    return total if reduction == "sum" else total / (targets != ignore_index).sum().clamp(min=1)


def logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[N,V] in at least float32."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    out = product(hidden.to(dtype), weight.to(dtype).mT)
    return out if bias is None else out + bias.to(dtype)
