"""Which tokens a pass predicts: one after each context, or those of a span, each given what stands before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Targets(NamedTuple):
    """R target tokens of each of N examples; -1 in both fields where an example has fewer."""

    positions: Tensor
    """[N,R] p: the position before each target, in order."""
    ids: Tensor
    """[N,R]"""

    @property
    def there(self) -> Tensor:
        """[N,R] bool: whether the example has so many targets."""
        return self.positions >= 0

    def part(self, at: slice | Tensor) -> Targets:
        """Some of the examples."""
        return Targets(self.positions[at], self.ids[at])

    def mask(self, length: int) -> Tensor:
        """[N,T] bool: the prediction positions."""
        return (torch.arange(length, device=self.positions.device) == self.positions[..., None]).any(1)

    def surprisal(self, of: Callable[[Tensor, Tensor], Tensor], states: Tensor) -> Tensor:
        """[N,R] in nats, 0 where an example has fewer targets.

        Args:
            of: (states [M,D], ids [M,1]) → [M,1].
            states: [N,T,D] final hidden states or logits.
        """
        there, ids = self.there.to(states.device), self.ids.to(states.device)
        rows = states.take_along_dim(self.positions.clamp(min=0).to(states.device)[..., None], 1)  # [N,R,D]
        each = of(rows[there], ids[there][:, None])[:, 0]
        return each.new_zeros(there.shape).masked_scatter(there.to(each.device), each)


def targets_at(positions: Tensor, ids: Tensor) -> Targets:
    """One target of each example: ``ids`` [N] after the positions [N]."""
    return Targets(positions[:, None], ids[:, None])


def targets_of_span(ids: Tensor, span: Tensor) -> Targets:
    """The tokens of ``ids`` [N,T] at which ``span`` [N,T] is True as targets."""
    count = int(span.sum(1).max())
    # A stable sort moves the tokens of the span to the front of each row, in their order.
    at = (~span).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    there = span.gather(1, at)
    return Targets(torch.where(there, at - 1, -1), torch.where(there, ids.gather(1, at), -1))
