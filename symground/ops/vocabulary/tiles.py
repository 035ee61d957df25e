"""Surprisal by tiles of logits, rows × vocabulary, by PyTorch's own matrix products. It runs on any device.

On a CPU rows that ask for nothing are left out, and the C++ extension, if it is built, does the steps between the
products. Elsewhere reading a value would wait for the device, so that these rows are computed from 0 and masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from symground.ops.common import extension
from symground.ops.common.tensors import accumulation_dtype
from symground.ops.vocabulary.autograd import Backend

#: The rows and the numbers in a tile of logits (16 MiB in float32). Tiles are large because threads wait for each
#: other at the end of each, and the steps after the product go row by row. With few rows, a tile has more columns.
ROWS, TILE = 512, 2**22
#: The numbers in a tile of the loss, which has whole rows; with fewer rows its products would be the slowest step.
LOSS_TILE = 2**23


def backend(reads: bool) -> Backend:
    """The implementation; ``reads`` says whether it may read values, as on a CPU."""
    return Backend(partial(_forward, reads), partial(_backward, reads), partial(_loss, reads))


def _forward(
    reads: bool, hidden: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    dtype, rows = accumulation_dtype(hidden), hidden.shape[0]
    if candidates.ndim == 2 and not reads:
        nothing = candidates[:, :1] < 0
        found = _surprisal(reads, hidden.masked_fill(nothing, 0), weight, bias, candidates.clamp(min=0))
        return found[0].masked_fill_(nothing, 0), found[1]
    asked = _asked(candidates)
    if asked is not None:
        surprisal = hidden.new_zeros(rows, candidates.shape[-1], dtype=dtype)
        norm = hidden.new_zeros(rows, 2, dtype=dtype)
        if len(asked):
            surprisal[asked], norm[asked] = _surprisal(reads, hidden[asked], weight, bias, candidates[asked])
        return surprisal, norm
    return _surprisal(reads, hidden, weight, bias, candidates)


def _surprisal(
    reads: bool, hidden: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """`_forward` for rows that all have candidates.

    A candidate's logit comes from its tile and is subtracted from the row's largest: where the candidate is the most
    probable word, the difference is exactly 0. Subtracted from the log-sum-exp, it would leave that one's rounding.
    """
    dtype, rows = accumulation_dtype(hidden), hidden.shape[0]
    top = hidden.new_full((rows,), float("-inf"), dtype=dtype)
    total = hidden.new_zeros(rows, dtype=dtype)
    of_candidates = hidden.new_empty(rows, candidates.shape[-1], dtype=dtype)
    width = _columns(hidden, weight, dtype)
    tile = _tile(hidden, width, dtype)
    for first, columns in _spans(weight.shape[0], width):
        head = weight[columns].to(dtype)
        for _, at in _spans(rows, ROWS):
            z = _logits(hidden[at].to(dtype), head, bias, columns, tile)
            _take(reads, z, (candidates if candidates.ndim == 1 else candidates[at]) - first, of_candidates[at])
            _add_exponentials(reads, z, top[at], total[at])
    return (top[:, None] - of_candidates).add_(total.log()[:, None]), torch.stack([top, total], 1)


def _take(reads: bool, z: Tensor, ids: Tensor, into: Tensor) -> None:
    """Put the logits of the candidates in this tile into their places; ``ids`` counts from its first column."""
    here = (ids >= 0) & (ids < z.shape[1])
    if reads and ids.ndim == 1:
        at = here.nonzero()[:, 0]
        into[:, at] = z[:, ids[at]]
        return
    near = ids.clamp(0, z.shape[1] - 1)
    into.copy_(torch.where(here, z[:, near] if ids.ndim == 1 else z.gather(1, near), into))


def _backward(
    reads: bool, grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor, norm: Tensor,
    *of: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    if candidates.ndim == 2 and not reads:
        nothing = candidates[:, :1] < 0
        grad, hidden = grad.masked_fill(nothing, 0), hidden.masked_fill(nothing, 0)
        return _gradients(reads, grad, hidden, weight, bias, candidates.clamp(min=0), norm, *of)
    asked = _asked(candidates)
    if asked is None:
        return _gradients(reads, grad, hidden, weight, bias, candidates, norm, *of)
    found = (grad[asked], hidden[asked], weight, bias, candidates[asked], norm[asked])
    of_asked, dw, db = _gradients(reads, *found, *of)
    dh = None if of_asked is None else hidden.new_zeros(hidden.shape)
    if dh is not None and of_asked is not None:
        dh[asked] = of_asked
    return dh, dw, db


def _gradients(
    reads: bool, grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, candidates: Tensor, norm: Tensor,
    of_hidden: bool, of_weight: bool, of_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """`_backward` for rows that all have candidates."""
    dtype, vocabulary = norm.dtype, weight.shape[0]
    at_candidates, (top, total) = grad.to(dtype), norm.T.contiguous()
    # Relative to the largest logit, as in `_surprisal`: the log-sum-exp is rounded.
    of_row = at_candidates.sum(1) / total
    ids = candidates.expand(len(hidden), -1)
    dh = hidden.new_zeros(hidden.shape, dtype=dtype) if of_hidden else None
    dw = weight.new_empty(weight.shape) if of_weight else None
    db = bias.new_empty(vocabulary) if of_bias and bias is not None else None
    width = _columns(hidden, weight, dtype)
    tile = _tile(hidden, width, dtype)
    for first, columns in _spans(vocabulary, width):
        head = weight[columns].to(dtype)
        of_head = head.new_zeros(head.shape) if of_weight else None
        of_level = head.new_zeros(len(head))
        for _, at in _spans(len(hidden), ROWS):
            states = hidden[at].to(dtype)
            dz = _logits(states, head, bias, columns, tile)
            _scaled_exponentials(reads, dz, top[at], of_row[at])
            here = (ids[at] >= first) & (ids[at] < first + len(head))
            dz.scatter_add_(1, (ids[at] - first).masked_fill(~here, 0), -at_candidates[at].masked_fill(~here, 0.0))
            if dh is not None:
                dh[at].addmm_(dz, head)
            if of_head is not None:
                of_head.addmm_(dz.mT, states)
            if of_bias:
                of_level += dz.sum(0)
        if dw is not None and of_head is not None:
            dw[columns] = of_head
        if db is not None:
            db[columns] = of_level
    return None if dh is None else dh.to(hidden.dtype), dw, db


def _loss(
    reads: bool, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *of: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The loss and its gradients together, a tile of rows at a time. This takes three products and stores no
    exponentials; a separate backward pass would recompute the logits."""
    of_hidden, of_weight, of_bias = of
    counts = targets >= 0
    if reads:
        asked = counts.nonzero()[:, 0]
        if len(asked) < len(targets):
            loss, dh, dw, db = _loss(reads, hidden[asked], weight, bias, targets[asked], *of)
            return loss, None if dh is None else torch.zeros_like(hidden).index_copy_(0, asked, dh), dw, db
    else:
        hidden, targets = hidden.masked_fill(~counts[:, None], 0), targets.clamp(min=0)
    rows = max(1, min(len(hidden), LOSS_TILE // len(weight)))
    tile = hidden.new_empty(rows * len(weight))
    loss = hidden.new_zeros(())
    dh = hidden.new_empty(hidden.shape) if of_hidden else None
    dw = hidden.new_zeros(weight.shape) if of_weight else None
    db = hidden.new_zeros(len(weight)) if of_bias else None
    for _, at in _spans(len(hidden), rows):
        states, ids = hidden[at], targets[at, None]
        z = _logits(states, weight, bias, slice(None), tile)
        of_target = z.gather(1, ids)[:, 0]
        top, total = torch.full_like(of_target, float("-inf")), torch.zeros_like(of_target)
        # The plain-PyTorch version overwrites the logits; the extension does not.
        _add_exponentials(reads, z if _by_extension(reads) else z.clone(), top, total)
        counted = counts[at].to(z.dtype) if not reads else torch.ones_like(total)
        # Relative to the largest logit, as in `_surprisal`: the log-sum-exp is rounded.
        loss += (((top - of_target) + total.log()) * counted).sum()
        _scaled_exponentials(reads, z, top, counted / total)
        z.scatter_add_(1, ids, -counted[:, None])
        if dh is not None:
            torch.mm(z, weight, out=dh[at])
        if dw is not None:
            dw.addmm_(z.mT, states)
        if db is not None:
            db += z.sum(0)
    return loss, dh, dw, db


def _columns(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> int:
    """The columns of a tile; if the weights must be converted, at most a tile's numbers of them at a time."""
    rows = min(len(hidden), ROWS)
    fitting = TILE // max(1, rows, weight.shape[1] if weight.dtype != dtype else 1)
    return max(1, min(fitting, len(weight)))


def _asked(candidates: Tensor) -> Tensor | None:
    """The rows that have a candidate, or None if all have one; rows without one are not computed."""
    if candidates.ndim == 1 or bool((candidates[:, 0] >= 0).all()):
        return None
    return (candidates[:, 0] >= 0).nonzero()[:, 0]


def _tile(hidden: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """Memory that all tiles share: new pages for each tile would take longer than the work on it."""
    return hidden.new_empty(min(len(hidden), ROWS) * columns, dtype=dtype)


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, columns: slice, tile: Tensor) -> Tensor:
    out = tile[: len(hidden) * len(head)].view(len(hidden), len(head))
    if bias is None:
        return torch.mm(hidden, head.mT, out=out)
    return torch.addmm(bias[columns].to(head.dtype), hidden, head.mT, out=out)


def _by_extension(reads: bool) -> bool:
    return reads and extension.is_built()


def _add_exponentials(reads: bool, z: Tensor, top: Tensor, total: Tensor) -> None:
    """Update the rows' maxima and their sums of exponentials, relative to them, with a tile of logits; may change z."""
    if _by_extension(reads):
        extension.library.add_exponentials(z, top, total)
        return
    higher = torch.maximum(top, z.amax(1))
    # If all logits so far are -inf, -inf - (-inf) would be NaN.
    level = higher.masked_fill(higher.isneginf(), 0.0)
    total.mul_((top - level).exp_()).add_(z.sub_(level[:, None]).exp_().sum(1))
    top.copy_(higher)


def _scaled_exponentials(reads: bool, z: Tensor, level: Tensor, factor: Tensor) -> None:
    """Replace z by factor · exp(z - level), row by row."""
    if _by_extension(reads):
        extension.library.scaled_exponentials(z, level, factor)
    else:
        z.sub_(level[:, None]).exp_().mul_(factor[:, None])


def _spans(length: int, step: int) -> Iterator[tuple[int, slice]]:
    for start in range(0, length, step):
        yield start, slice(start, min(start + step, length))
