"""Lists of nouns, and the study's rule for which of them a corpus can be probed with."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from symground.data.words import IMAGE, TIERS, lan, shown
from symground.typed import check_kind, check_path

STUDY_NOUNS: tuple[str, ...] = tuple(
    (files("symground.data") / "resources" / "nouns.txt").read_text(encoding="utf-8").split()
)


_SENSE = re.compile(r"\s*\(.*?\)|\*")
#: Categories of the CDI that hold nouns.
CDI_NOUNS = (
    "animals", "vehicles", "toys", "food_drink", "clothing", "body_parts", "household", "furniture_rooms", "outside",
    "places", "people",
)  # fmt: skip


def cdi_categories() -> dict[str, str]:
    """noun → its category on the MacArthur-Bates CDI, Words and Sentences (Wordbank)."""
    lines = (files("symground.data") / "resources" / "categories.tsv").read_text(encoding="utf-8").splitlines()
    of_line = (line.partition("\t") for line in lines[1:])
    return {noun: category for noun, _, category in of_line}


def noun_list(source: str = "study", categories: Sequence[str] = ()) -> list[str]:
    """Candidates for probing, in order, each once.

    Args:
        source: "study" (the study's 100), "cdi" (all nouns of the American English CDI that are one word), a CSV file
            of items as Wordbank gives it, or any other file with a word a line.
        categories: only nouns the CDI lists under these (animals, toys, …); all by default.

    Raises:
        FileNotFoundError: a file that does not exist.
        ValueError: a CSV without a column of words or of categories, a category that is not there (lists those that
            are), or no word left.
    """
    if source in ("study", "cdi"):
        known = cdi_categories()
        words = list(STUDY_NOUNS) if source == "study" else list(known)
    else:
        path = check_path(source, "nouns")
        if not path.is_file():
            raise FileNotFoundError(f"nouns: expected 'study', 'cdi' or a file, {source} does not exist")
        if path.suffix == ".csv":
            known = _wordbank(path)
            words = list(known)
        else:
            known = cdi_categories()
            words = list(dict.fromkeys(path.read_text(encoding="utf-8").split()))
    absent = set(categories) - set(known.values())
    if absent:
        there = ", ".join(sorted(set(known.values())))
        raise ValueError(f"noun_categories: expected some of {there}; got {', '.join(sorted(absent))}")
    found = [word for word in words if not categories or known.get(word) in categories]
    if not found:
        raise ValueError(f"nouns: {source} has no word in {', '.join(categories) or 'it'}")
    return found


def _wordbank(path: Path) -> dict[str, str]:
    """One-word nouns of a Wordbank item list → category: of "chicken (animal)" and "soda/pop" the first word."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        word = word_column(columns)
        if word is None or "category" not in columns:
            raise ValueError(
                f"nouns: {path}: expected the columns 'definition' (or 'item_definition') and 'category', got "
                f"{', '.join(columns) or 'none'}"
            )
        rows = [(first_word(row[word] or ""), row["category"] or "") for row in reader]
    found: dict[str, str] = {}
    for noun, category in rows:
        if category in CDI_NOUNS and re.fullmatch(r"\w+(?:'\w+)?", noun):
            found.setdefault(noun, category)
    return found


def word_column(columns: Sequence[str]) -> str | None:
    """Which column of a table of Wordbank's holds the words."""
    return next((name for name in ("definition", "item_definition") if name in columns), None)


def first_word(definition: str) -> str:
    """Of Wordbank's "chicken (animal)" and "soda/pop" the first word."""
    return _SENSE.sub("", definition).partition("/")[0].strip()


def noun_tokens(
    nouns: Sequence[str], spoken: Mapping[str, str] | None = None, cue: str = "env"
) -> dict[str, tuple[str, str]]:
    """noun → (its token in the scene, its token in speech).

    Args:
        nouns: what stands in the scene.
        spoken: noun → what it is called in speech, itself where it is not listed.
        cue: "env"; "lan" where the scene is told in spoken words; or "image", where the first is no token but what
            counts call an image that shows the noun.
    """
    form = shown if cue == IMAGE else TIERS[cue][0]
    return {noun: (form(noun), lan((spoken or {}).get(noun, noun))) for noun in nouns}


def nouns_over_threshold(
    counts: Mapping[str, int], minimum: int = 100, nouns: Sequence[str] = STUDY_NOUNS,
    spoken: Mapping[str, str] | None = None, cue: str = "env",
) -> list[str]:  # fmt: skip
    """The nouns that stand at least ``minimum`` times both as ENV and as LAN (the study's rule, there 100).

    Args:
        counts: how often each token stands in the corpus.
        minimum: occurrences, of each of the two forms.
        nouns: candidates, in the order of the result.
        spoken, cue: as of :func:`noun_tokens`.

    Raises:
        ValueError: fewer than two nouns pass (no mismatch could be formed); names the nouns that come closest.
    """
    check_kind(counts, Mapping, "counts")
    tokens = noun_tokens(nouns, spoken, cue)
    smaller = {noun: min(counts.get(token, 0) for token in both) for noun, both in tokens.items()}
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
