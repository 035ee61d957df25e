"""The heads to silence in each example: those found in it, or those found in the other half of the contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from symground.analysis.heads.finding import KINDS, HeadSet, find_heads, head_shares
from symground.errors import choice

#: "both" is the union of the gather heads and the aggregate heads of an example.
INTERVENED = (*KINDS, "both")
SELECTIONS = ("example", "held-out")
POSITIONS = ("all", "own")


class SilencedHeads(NamedTuple):
    """The heads of each example, and the positions at which they are silenced."""

    heads: Sequence[HeadSet]
    where: str | None
    """A query group of the examples; None silences at all positions."""


def silenced_heads(
    traced: xr.Dataset, kind: str, denominator: str, threshold: float, selection: str, positions: str, seed: int
) -> list[SilencedHeads]:
    """The heads of a kind in each example of a trace of probes, by the positions at which they are silenced.

    Args:
        traced: from :func:`symground.trace` of probes.
        kind: "aggregate", "gather" or "both".
        denominator: as for :func:`symground.find_heads`.
        threshold: the smallest share of flow.
        selection: "example" selects by the example's own flow (the study's). "held-out" selects one set for all
            examples of a half of the contexts: the heads whose mean share over the other half reaches the threshold.
        positions: "all"; or "own", each kind at its own position: gather heads at the ENV noun, aggregate heads at the
            prediction position.
        seed: of the halves.

    Raises:
        ValueError: an unknown value of kind, selection or positions; or fewer than two contexts, which cannot be split.
    """
    for name, value, known in (
        ("kind", kind, INTERVENED),
        ("selection", selection, SELECTIONS),
        ("positions", positions, POSITIONS),
    ):
        choice(name, value, known)
    kinds = ("gather", "aggregate") if kind == "both" else (kind,)
    if selection == "example":
        found: list[Sequence[HeadSet]] = [find_heads(traced, k, threshold, denominator) for k in kinds]
    else:
        found = [_held_out(traced, k, threshold, denominator, seed) for k in kinds]
    if positions == "own":
        return [SilencedHeads(sets, KINDS[k][0]) for k, sets in zip(kinds, found, strict=True)]
    return [SilencedHeads([frozenset().union(*of_example) for of_example in zip(*found, strict=True)], None)]


def halves(traced: xr.Dataset, seed: int) -> NDArray[np.bool_]:
    """[examples] bool: whether the example's context is in the first of two random halves.

    Raises:
        ValueError: fewer than two contexts.
    """
    contexts = np.unique(traced.context.values)
    if len(contexts) < 2:
        raise ValueError(f"selection: 'held-out' needs two contexts to make halves of, got {len(contexts)}")
    first = np.random.default_rng(seed).permutation(contexts)[: len(contexts) // 2]
    return np.isin(traced.context.values, first)


def _held_out(traced: xr.Dataset, kind: str, threshold: float, denominator: str, seed: int) -> Sequence[HeadSet]:
    in_first = halves(traced, seed)
    shares, layers = head_shares(traced, kind, denominator).values, traced.layer.values
    sets = {}
    for half in (True, False):
        mean = shares[in_first != half].mean(0)
        sets[half] = frozenset(
            (int(layers[i]), int(head)) for i, head in zip(*np.nonzero(mean >= threshold), strict=True)
        )
    return [sets[bool(half)] for half in in_first]
