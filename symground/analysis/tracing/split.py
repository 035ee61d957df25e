"""The groups of queries where each target of an example has a trace of its own.

The prediction positions of other targets are then in the groups that they would be in without a target. So each of them
is a group of its own in the pass, and the flow of a target's groups is a sum over those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot


class Split(NamedTuple):
    """R prediction positions as groups of queries, of which each target joins all but its own to the others."""

    members: Tensor
    """[N,R] the group that each prediction position is in for the other targets; -1 for none."""

    @staticmethod
    def at(positions: Tensor, key_groups: Tensor, names: Sequence[str], key_names: Sequence[str]) -> Split:
        """The split at the positions [N,R], which are in the key groups [N,T] of the same name otherwise."""
        of_key = [names.index(name) if name in names else -1 for name in key_names]
        otherwise = torch.tensor([*of_key, -1], device=key_groups.device)[key_groups]  # -1 is the last
        found = otherwise.gather(1, positions.clamp(min=0))
        return Split(torch.where(positions < 0, -1, found))

    def of(self, examples: slice) -> Split:
        return Split(self.members[examples])

    def groups(self, queries: Tensor, positions: Tensor) -> Tensor:
        """The groups of the pass [N,T]: R prediction positions [N,R], then the groups of ``queries`` but for the first.

        ``queries`` [N,T] has 0 at all prediction positions, and -1 in no group.
        """
        count = positions.shape[1]
        at = torch.arange(queries.shape[1], device=queries.device)[:, None] == positions[:, None]  # [N,T,R]
        return torch.where(at.any(-1), at.int().argmax(-1), torch.where(queries < 0, -1, queries + count - 1))

    def joined(self, flow: Tensor, target: int, groups: int) -> Tensor:
        """One target's flow [B,H,groups + 1,Gk] from that of the pass [B,H,R + groups,Gk]; the last is the rest."""
        count = self.members.shape[1]
        of_other = torch.where(self.members < 0, groups, self.members).to(flow.device)
        into = one_hot(of_other, groups + 1).to(flow.dtype)  # [B,R,groups + 1]
        into[:, target] = one_hot(torch.zeros_like(of_other[:, 0]), groups + 1).to(flow.dtype)
        found = torch.einsum("brg,bhrk->bhgk", into, flow[:, :, :count])
        found[:, :, 1:] += flow[:, :, count:]
        return found
