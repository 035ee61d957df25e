"""A lens, which maps the residual stream after a layer to the vocabulary head's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from symground.ops.common import checks as check
from symground.ops.common.derivatives import product


class Lens(NamedTuple):
    """The layers' translators, W [L,D,D] and b [L,D], or None; and the model's final norm, [N,D] → [N,D]."""

    translators: tuple[Tensor, Tensor] | None
    norm: Callable[[Tensor], Tensor]

    def translated(self, hidden: Tensor) -> Tensor:
        """h + h W_lᵀ + b_l for every layer l, [L,N,D]."""
        if self.translators is None:
            return hidden
        w, b = self.translators
        return hidden + product(hidden, w.mT) + b[:, None]

    def normed(self, rows: Tensor) -> Tensor:
        """[N,D]; the result is checked because the norm is the caller's."""
        normed = self.norm(rows)
        check.has_shape("norm", normed, "N,D", tuple(rows.shape))
        check.matches("norm", normed, "hidden", rows)
        return normed


def in_one_pass(surprisal: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The lens op made from a surprisal op: all layers as one matrix of rows, in one pass over the vocabulary."""

    def run(hidden: Tensor, lens: Lens, weight: Tensor, candidates: Tensor, bias: Tensor | None) -> Tensor:
        layers, rows, size = hidden.shape
        hidden = lens.translated(hidden)
        if candidates.ndim == 2:
            candidates = candidates.repeat(layers, 1)
        out = surprisal(lens.normed(hidden.reshape(layers * rows, size)), weight, candidates, bias)
        return out.view(layers, rows, candidates.shape[-1])

    return run
