"""Control heads: as many as were selected in an example, drawn from those that were not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from symground.analysis.heads import HeadSet

MATCHES = (None, "layer", "norm")
#: In more than this share of the examples there may not be fewer controls than were asked for: a comparison with them
#: would be one with fewer heads than were silenced, and often with the same ones in every draw.
SHORT = 0.1
#: A control's output is at most so many times as long as the selected head's, and at least 1 / so many times.
NORM_RATIO = 1.25

Pair = tuple[int, int]


class Controls:
    """Draws control heads for the examples of one selection.

    Args:
        heads: every (layer, head) of the model.
        selected: the heads of each example.
        taken: heads of each example that are no controls either; ``selected`` are not in any case.
        match: None, from all layers; "layer", from the selected head's own layer; "norm", whose output is about as long
            (within a factor of `NORM_RATIO`) in that example.
        norms: for "norm": each head's in each example [N, len(heads)].
    """

    def __init__(
        self,
        heads: Sequence[Pair],
        selected: Sequence[HeadSet],
        taken: Sequence[HeadSet],
        match: str | None = None,
        norms: NDArray[np.float64] | None = None,
    ) -> None:
        if match not in MATCHES:
            raise ValueError(f"match: expected None, 'layer' or 'norm', got {match!r}")
        self._match, self._selected = match, selected
        self._rest = [[h for h in heads if h not in t and h not in s] for s, t in zip(selected, taken, strict=True)]
        self._norm: list[dict[Pair, float]] = []
        if match == "norm":
            assert norms is not None
            self._norm = [dict(zip(heads, of_example, strict=True)) for of_example in norms.tolist()]

    def draw(self, rng: np.random.Generator) -> tuple[list[HeadSet], list[bool]]:
        """For each example its control heads, and whether they are fewer than its selected ones."""
        drawn = [self._example(rng, i) for i in range(len(self._selected))]
        return drawn, [len(own) < len(heads) for own, heads in zip(drawn, self._selected, strict=True)]

    def _example(self, rng: np.random.Generator, i: int) -> HeadSet:
        own, rest = self._selected[i], self._rest[i]
        if not own:
            return frozenset()
        if self._match is None:
            return _some(rng, rest, len(own))
        if self._match == "layer":
            wanted = sorted(Counter(layer for layer, _ in own).items())
            return frozenset().union(
                *(_some(rng, [h for h in rest if h[0] == layer], count) for layer, count in wanted)
            )
        return self._alike(rng, i)

    def _alike(self, rng: np.random.Generator, i: int) -> HeadSet:
        """One after the other in random order, so that no selected head has the first choice in every draw."""
        norm, own = self._norm[i], sorted(self._selected[i])
        chosen: set[Pair] = set()
        for at in rng.permutation(len(own)):
            low, high = norm[own[at]] / NORM_RATIO, norm[own[at]] * NORM_RATIO
            chosen |= _some(rng, [h for h in self._rest[i] if low <= norm[h] <= high and h not in chosen], 1)
        return frozenset(chosen)


def enough(short: float | None, examples: float = 1.0) -> bool:
    """Whether controls can be compared with: at most the share `SHORT` of the examples lacked some.

    Args:
        short: in how many of the examples there were fewer controls than were asked for; None or NaN, not known, counts
            as few.
        examples: how many there are; 1 where ``short`` is a share of them.
    """
    return short is None or not short > SHORT * examples


def _some(rng: np.random.Generator, heads: list[Pair], count: int) -> HeadSet:
    picked = rng.choice(len(heads), size=min(count, len(heads)), replace=False)
    return frozenset(heads[i] for i in picked)
