"""Co-occurrence counts of nouns on an ENV tier with nouns in speech in the training text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from symground.analysis.checks import words_of
from symground.data import Corpus
from symground.data.words import IMAGE, TIERS, noun_tokens
from symground.errors import choice, described, integer


def cooccurrence(
    corpus: Corpus,
    nouns: Sequence[str],
    window: int = 512,
    *,
    spoken: Mapping[str, str] | None = None,
    cue: str = "env",
) -> pd.DataFrame:
    """Count the pairs of a noun as ENV and a noun as LAN within ``window`` tokens of each other, in one document.

    Args:
        corpus: token ids with document bounds.
        nouns: nouns to count in both forms.
        window: the largest distance, in tokens, in either direction (the study gives none; 512 is its sequence length).
        spoken: noun → its spoken word; a noun that is not listed is its own.
        cue: "lan" counts the noun in the scene as a spoken word too; a position is not paired with itself. "image"
            counts the images that show the noun according to the corpus, each at its last patch.

    Returns:
        A DataFrame with a row per (env, lan) pair of nouns. Its columns:

        - env, lan;
        - count: the number of pairs of positions; env_count, lan_count: how often each of the two occurs;
        - pmi: the pointwise mutual information log P(v, w) / (P(v) P(w)) in nats, with P(v, w) the share of all pairs
          of positions within the window and P(v) the share of all positions; -inf if the two never co-occur. It
          measures co-occurrence beyond what frequency explains.

    Raises:
        ValueError: a noun that is not in the vocabulary, or a window below 1.

    Source: pointwise mutual information as in Church and Hanks 1990, in windows of either direction.
    """
    if not isinstance(corpus, Corpus):
        raise ValueError(f"corpus: expected a symground.data.Corpus (Corpus.load reads one), got {described(corpus)}")
    nouns = words_of(nouns, "nouns")
    window, cue = integer("window", window, 1), choice("cue", cue, (*TIERS, IMAGE))
    vocabulary = corpus.tokenizer.get_vocab()
    of = noun_tokens(nouns, spoken, cue)
    if cue == IMAGE and corpus.images is None:
        raise ValueError("cue: expected a corpus with images for 'image'")
    tokens = {token for both in of.values() for token in (both[1:] if cue == IMAGE else both)}
    missing = sorted(tokens - vocabulary.keys())
    if missing:
        raise ValueError(f"nouns: not in the corpus's vocabulary: {', '.join(missing)}")
    document = np.searchsorted(corpus.documents, np.arange(len(corpus.tokens)), side="right")
    # The positions of documents are shifted apart by more than the window, so that no pair crosses a boundary.
    place = np.arange(len(corpus.tokens)) + document * (window + 1)
    by_id = _positions(corpus.tokens, sorted(vocabulary[token] for token in tokens), place)
    at = {token: by_id[vocabulary[token]] for token in tokens}
    if cue == IMAGE:
        at |= _images(corpus, {of[noun][0]: noun for noun in nouns}, place)
    counts = []
    for v in nouns:
        centres = at[of[v][0]]
        for w in nouns:
            others = at[of[w][1]]
            within = np.searchsorted(others, centres + window, "right") - np.searchsorted(others, centres - window)
            itself = len(centres) if of[v][0] == of[w][1] else 0
            counts.append((v, w, int(within.sum()) - itself, len(centres), len(others)))
    table = pd.DataFrame(counts, columns=["env", "lan", "count", "env_count", "lan_count"])
    positions, pairs = len(corpus.tokens), _pairs_within(np.diff(corpus.documents), window)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = table["env_count"] * table["lan_count"] / positions**2 * pairs
        return table.assign(pmi=np.log(table["count"] / expected))


def _images(corpus: Corpus, names: Mapping[str, str], place: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """The token of a noun's images in the counts → the sorted last positions of the images that show the noun."""
    patch = np.asarray(corpus.tokens) - len(corpus.tokenizer)
    ends = np.flatnonzero((patch >= 0) & (patch % corpus.prefix == corpus.prefix - 1))
    image = patch[ends] // corpus.prefix
    return {name: place[ends[np.isin(image, list(corpus.shown.get(noun, ())))]] for name, noun in names.items()}


def _pairs_within(lengths: NDArray[np.int64], window: int) -> int:
    """The number of ordered pairs of different positions of one document that are at most ``window`` apart."""
    reach = np.minimum(window, lengths).astype(object)  # Python's integers: squares of lengths may overflow
    return int((reach * (2 * lengths.astype(object) - reach - 1)).sum())


def _positions(tokens: NDArray[np.int32], ids: list[int], place: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """id → its sorted positions."""
    wanted = np.flatnonzero(np.isin(tokens, ids))
    found = np.asarray(tokens)[wanted]
    return {i: place[wanted[found == i]] for i in ids}
