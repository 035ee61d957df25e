"""Which ENV nouns are set against a target noun: all others, some at random, or those of its category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from symground.data.nouns import cdi_categories


def pairs_of(
    nouns: Sequence[str], mismatches: str | int, seed: int = 0, categories: Mapping[str, str] | None = None
) -> Tensor:
    """[V,V] bool: whether ENV noun u is scored with target v. A noun is always scored with itself.

    Args:
        nouns: V of them.
        mismatches: "all", so many other nouns at random for each target, or "category".
        seed: of the random choice; the same in every context, so that contexts are compared alike.
        categories: noun → category; None takes the CDI's.

    Raises:
        ValueError: a number that does not fit, nouns without a category or alone in theirs (names them).
    """
    count = len(nouns)
    same = torch.eye(count, dtype=torch.bool)
    if mismatches == "all":
        return torch.ones(count, count, dtype=torch.bool)
    if isinstance(mismatches, int) and not isinstance(mismatches, bool):
        if not 1 <= mismatches < count:
            raise ValueError(f"mismatches: expected 1 to {count - 1} of the other nouns, got {mismatches}")
        rng = np.random.default_rng(seed)
        for v in range(count):
            others = np.delete(np.arange(count), v)
            same[torch.from_numpy(rng.choice(others, mismatches, replace=False)), v] = True
        return same
    if mismatches != "category":
        raise ValueError(f"mismatches: expected 'all', 'category' or how many, got {mismatches!r}")
    known = cdi_categories() if categories is None else categories
    without = [noun for noun in nouns if noun not in known]
    if without:
        raise ValueError(f"mismatches: no category is known of {', '.join(without)}; give categories")
    of = [known[noun] for noun in nouns]
    alone = [noun for noun, category in zip(nouns, of, strict=True) if of.count(category) == 1]
    if alone:
        raise ValueError(f"mismatches: no other noun has the category of {', '.join(alone)}")
    return torch.tensor([[a == b for b in of] for a in of])
