"""Control heads: for each example as many heads as were selected, drawn from those that were not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from symground.analysis.heads import HeadSet
from symground.errors import choice

MATCHES = (None, "layer", "norm")
#: The largest share of examples that may have fewer controls than selected heads. With more, the controls would silence
#: fewer heads than the intervention, and often the same ones in every draw.
SHORT = 0.1
#: The norm of a control's output is at most this factor times that of the selected head, and at least 1 / this factor.
NORM_RATIO = 1.25

Pair = tuple[int, int]


class Controls:
    """Draws control heads for the examples of one selection.

    Args:
        heads: every (layer, head) of the model.
        selected: the heads of each example.
        taken: further heads of each example that cannot be controls; ``selected`` never can.
        match: None draws from all layers; "layer" from the selected head's own layer; "norm" from heads whose output
            in that example has about the same norm (within a factor of `NORM_RATIO`).
        norms: for "norm": the norm of each head's output in each example [N, len(heads)].
    """

    def __init__(
        self,
        heads: Sequence[Pair],
        selected: Sequence[HeadSet],
        taken: Sequence[HeadSet],
        match: str | None = None,
        norms: NDArray[np.float64] | None = None,
    ) -> None:
        self._match, self._selected = choice("match", match, MATCHES), selected
        self._rest = [[h for h in heads if h not in t and h not in s] for s, t in zip(selected, taken, strict=True)]
        self._norm: list[dict[Pair, float]] = []
        if match == "norm":
            assert norms is not None
            self._norm = [dict(zip(heads, of_example, strict=True)) for of_example in norms.tolist()]

    def draw(self, rng: np.random.Generator) -> tuple[list[HeadSet], list[bool]]:
        """The control heads of each example, and whether they are fewer than its selected heads."""
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
        """Controls for one selected head after the other, in random order: none has the first choice in every draw."""
        norm, own = self._norm[i], sorted(self._selected[i])
        chosen: set[Pair] = set()
        for at in rng.permutation(len(own)):
            low, high = norm[own[at]] / NORM_RATIO, norm[own[at]] * NORM_RATIO
            chosen |= _some(rng, [h for h in self._rest[i] if low <= norm[h] <= high and h not in chosen], 1)
        return frozenset(chosen)


def enough(short: float | None, examples: float = 1.0) -> bool:
    """Whether there were enough controls for a comparison: at most the share `SHORT` of the examples lacked some.

    Args:
        short: the number of examples with fewer controls than selected heads. Unknown (None or NaN) counts as enough.
        examples: the number of examples; 1 if ``short`` is a share of them.
    """
    return short is None or not short > SHORT * examples


def _some(rng: np.random.Generator, heads: list[Pair], count: int) -> HeadSet:
    picked = rng.choice(len(heads), size=min(count, len(heads)), replace=False)
    return frozenset(heads[i] for i in picked)
