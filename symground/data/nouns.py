"""The study's nouns, and its rule for which of them a corpus can be probed with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

from symground.data.words import env, lan

STUDY_NOUNS: tuple[str, ...] = tuple(
    (files("symground.data") / "resources" / "nouns.txt").read_text(encoding="utf-8").split()
)


def nouns_over_threshold(
    counts: Mapping[str, int], minimum: int = 100, nouns: Sequence[str] = STUDY_NOUNS
) -> list[str]:
    """The nouns that stand at least ``minimum`` times both as ENV and as LAN (the study's rule, there 100).

    Args:
        counts: how often each token stands in the corpus.
        minimum: occurrences, of each of the two forms.
        nouns: candidates, in the order of the result.

    Raises:
        ValueError: fewer than two nouns pass (no mismatch could be formed); names the nouns that come closest.
    """
    smaller = {noun: min(counts.get(env(noun), 0), counts.get(lan(noun), 0)) for noun in nouns}
    passed = [noun for noun in nouns if smaller[noun] >= minimum]
    if len(passed) < 2:
        closest = sorted(nouns, key=lambda n: -smaller[n])[:5]
        listing = ", ".join(f"{n} ({smaller[n]})" for n in closest)
        found = "no noun stands" if not passed else f"only {passed[0]!r} stands"
        raise ValueError(
            f"nouns: {found} at least {minimum} times both as ENV and as LAN, and probes need two; the closest, with "
            f"the smaller of their two counts: {listing}. Lower the threshold (--min-noun-count) or give more text."
        )
    return passed
