"""Lists of nouns, and the study's rule for the nouns with which a corpus can be probed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from symground.data.words.tokens import IMAGE, TIERS, lan, shown
from symground.errors import check_kind, check_path, choice, integer

STUDY_NOUNS: tuple[str, ...] = tuple(
    (files("symground.data") / "resources" / "nouns.txt").read_text(encoding="utf-8").split()
)


_SENSE = re.compile(r"\s*\(.*?\)|\*")
#: Categories of the CDI that contain nouns.
CDI_NOUNS = (
    "animals", "vehicles", "toys", "food_drink", "clothing", "body_parts", "household", "furniture_rooms", "outside",
    "places", "people",
)  # fmt: skip


def cdi_categories() -> dict[str, str]:
    """noun → its category in the MacArthur-Bates CDI, Words and Sentences (Wordbank)."""
    lines = (files("symground.data") / "resources" / "categories.tsv").read_text(encoding="utf-8").splitlines()
    of_line = (line.partition("\t") for line in lines[1:])
    return {noun: category for noun, _, category in of_line}


def noun_list(source: str = "study", categories: Sequence[str] = ()) -> list[str]:
    """Candidate nouns for probing, in order, without duplicates.

    Args:
        source: "study" (the study's 100), "cdi" (all nouns of the American English CDI that are one word), a CSV file
            of items as Wordbank exports it, or any other file with a noun per line, which may be several words.
        categories: only nouns in these categories of the CDI (animals, toys, …); default: all.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a CSV has no column of words or of categories, a category does not exist (lists those that do), or
            no word is left.
    """
    if source in ("study", "cdi"):
        known = cdi_categories()
        words = list(STUDY_NOUNS) if source == "study" else list(known)
    else:
        path = check_path(source, "nouns")
        if not path.is_file():
            wrong = "is a folder" if path.is_dir() else "does not exist"
            raise FileNotFoundError(f"nouns: expected 'study', 'cdi' or a file, {source} {wrong}")
        if path.suffix == ".csv":
            known = _wordbank(path)
            words = list(known)
        else:
            known = cdi_categories()
            words = list(dict.fromkeys(line.strip() for line in text_of(path).splitlines() if line.strip()))
    absent = set(categories) - set(known.values())
    if absent:
        known_categories = ", ".join(sorted(set(known.values())))
        raise ValueError(f"categories: expected some of {known_categories}; got {', '.join(sorted(absent))}")
    found = [word for word in words if not categories or known.get(word) in categories]
    if not found:
        raise ValueError(f"nouns: expected words of {', '.join(categories) or 'any kind'} in {source}, got none")
    return found


def text_of(path: Path) -> str:
    """A file's text, without a byte order mark; ValueError names a file that is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None


def _wordbank(path: Path) -> dict[str, str]:
    """Nouns of a Wordbank item list → category; only one-word items, shortened by :func:`first_word`."""
    with io.StringIO(text_of(path), newline="") as file:
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
    """The column of a Wordbank table that has the words."""
    return next((name for name in ("definition", "item_definition") if name in columns), None)


def first_word(definition: str) -> str:
    """The first word of Wordbank's "chicken (animal)" or "soda/pop"."""
    return _SENSE.sub("", definition).partition("/")[0].strip()


def noun_tokens(
    nouns: Sequence[str], spoken: Mapping[str, str] | None = None, cue: str = "env"
) -> dict[str, tuple[str, str]]:
    """noun → (its token in the scene, its token in speech).

    Args:
        nouns: the nouns in scenes.
        spoken: noun → its word in speech; a noun that is not listed is its own word.
        cue: "env"; "lan" if the scene is in spoken words; or "image", for which the first is not a token but the
            name under which images that show the noun are counted.
    """
    form = shown if cue == IMAGE else TIERS[cue][0]
    return {noun: (form(noun), lan((spoken or {}).get(noun, noun))) for noun in nouns}


def nouns_over_threshold(
    counts: Mapping[str, int], minimum: int = 100, nouns: Sequence[str] = STUDY_NOUNS,
    spoken: Mapping[str, str] | None = None, cue: str = "env",
) -> list[str]:  # fmt: skip
    """The nouns that occur at least ``minimum`` times both as ENV and as LAN (the study's rule, with 100).

    Args:
        counts: the count of each token in the corpus.
        minimum: least count of each of the two forms.
        nouns: candidates, in the order of the result.
        spoken, cue: as in :func:`noun_tokens`.

    Raises:
        ValueError: fewer than two nouns pass, so no mismatch can be formed; names the nouns that come closest.
    """
    check_kind(counts, Mapping, "counts")
    minimum, cue = integer("minimum", minimum, 0), choice("cue", cue, (*TIERS, IMAGE))
    tokens = noun_tokens(nouns, spoken, cue)
    smaller = {noun: min(counts.get(token, 0) for token in both) for noun, both in tokens.items()}
    passed = [noun for noun in nouns if smaller[noun] >= minimum]
    if len(passed) < 2:
        closest = sorted(nouns, key=lambda n: -smaller[n])[:5]
        listing = ", ".join(f"{n} ({smaller[n]})" for n in closest)
        raise ValueError(
            f"nouns: expected two that occur at least {minimum} times both as ENV and as LAN, "
            f"got {f'only {passed[0]!r}' if passed else 'none'}; the closest, with the smaller of their two counts: "
            f"{listing}. Lower the threshold (--min-noun-count) or give more text."
        )
    return passed
