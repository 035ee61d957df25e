"""Probes: sentence pairs with an ENV noun in the first, after which a LAN noun is predicted.

A context is an ENV sentence with a slot for the noun, then LAN words up to the position where a noun is due. The
surprisal of that noun is read at this position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from symground.analysis.checks import check_mapping, words_of
from symground.analysis.probing.contexts import Context, of_images, read_contexts
from symground.analysis.probing.encoding import ProbeImages, StudyEncoder, encoder_of
from symground.analysis.probing.examples import PATCHES, Examples, Ids, Row, further_of, padded
from symground.data import STUDY_NOUNS
from symground.data.words import IMAGE, TIERS, cdi_categories
from symground.display import as_table, as_text, some
from symground.errors import choice, described, integer, is_integer


@dataclass(frozen=True)
class Probes:
    """Contexts × ENV nouns × target nouns, as token ids."""

    nouns: tuple[str, ...]
    contexts: tuple[Context, ...]
    span: int
    rows: tuple[tuple[Row, ...], ...]
    """[contexts][ENV nouns]"""
    targets: tuple[Ids, ...]
    """The ids of each target noun after any context, one or several."""
    pairs: Tensor
    """[ENV nouns, target nouns] bool: the pairs that are scored."""
    spoken: tuple[str, ...]
    """The spoken word of each noun, whose ids are ``targets``."""

    def __len__(self) -> int:
        return len(self.contexts) * len(self.nouns)

    def __repr__(self) -> str:
        return as_text("Probes", self._shown())

    def _repr_html_(self) -> str:
        return as_table("Probes", self._shown())

    def _shown(self) -> dict[str, object]:
        first, tokens = self.contexts[0], sorted({len(ids) for ids in self.targets})
        pairs = int(self.pairs.sum())
        renamed = [f"{a} as {b}" for a, b in zip(self.nouns, self.spoken, strict=True) if a != b]
        before = f"{first.env} | {first.lan} …" if first.cue != IMAGE else f"an image | {first.lan} …"
        return {
            "contexts": f"{len(self.contexts)}, such as: {before}",
            "nouns": some(self.nouns),
            **({"spoken": some(renamed)} if renamed else {}),
            "scored": f"{len(self.contexts) * pairs} surprisals, {pairs} pairs a context",
            "tokens": f"{self.longest[0]} of the longest row, {' or '.join(map(str, tokens))} of a target",
            "span": self.span,
        }

    @property
    def longest(self) -> tuple[int, int]:
        """(the most tokens that a forward pass reads, i.e. context and target without its last token; its context)."""
        most = max(map(len, self.targets)) - 1
        return max((len(row.ids) + most, c) for c, rows in enumerate(self.rows) for row in rows)

    @property
    def largest_id(self) -> int:
        return max(max(map(max, self.targets)), *(max(row.ids) for rows in self.rows for row in rows))

    def fingerprint(self) -> str:
        """A hash of everything that is scored, so that scores of other probes are not mistaken for these."""
        content = hashlib.sha256(repr((self.nouns, self.contexts, self.targets, self.pairs.tolist())).encode())
        for of_context in self.rows:
            content.update(repr([row.ids for row in of_context]).encode())
        return content.hexdigest()

    def with_span(self, span: int) -> Probes:
        """The same probes with another span (tokens after the ENV noun that count as it)."""
        _check_span(span, self.rows)
        return replace(self, span=span)

    def take_contexts(self, indices: Sequence[int]) -> Probes:
        """Only the contexts at ``indices``."""
        index = list(indices)
        return replace(
            self, contexts=tuple(self.contexts[i] for i in index), rows=tuple(self.rows[i] for i in index)
        )  # fmt: skip

    def matched(self) -> Examples:
        """Every context with every noun, as both ENV noun and target; context by context."""
        nouns = range(len(self.nouns))
        return self._examples([list(nouns) for _ in self.contexts])

    def mismatched(self, seed: int = 0) -> Examples:
        """The examples of :meth:`matched`, each with a random other ENV noun that its target is scored with."""
        rng = np.random.default_rng(integer("seed", seed, 0))
        others = [[u for u in self.pairs[:, v].nonzero()[:, 0].tolist() if u != v] for v in range(len(self.nouns))]
        return self._examples([[int(rng.choice(of_noun)) for of_noun in others] for _ in self.contexts])

    def _examples(self, env: Sequence[Sequence[int]]) -> Examples:
        """Every context with every target noun; ``env`` [contexts][targets] is the index of the noun in the slot."""
        words = list(self.targets) * len(self.contexts)
        rows = [of_context[u] for of_context, of_env in zip(self.rows, env, strict=True) for u in of_env]
        places = [_places(row) for row in rows]
        numbers = [(len(row.ids), row.outside, *place[:2]) for row, place in zip(rows, places, strict=True)]
        lengths, outside, starts, last = torch.tensor(numbers).T[..., None]  # [N,1] each
        ids = padded([(*row.ids, *word[:-1]) for row, word in zip(rows, words, strict=True)])
        others = torch.zeros_like(ids, dtype=torch.bool)
        for i, place in enumerate(places):
            others[i, list(place[2])] = True
        position = torch.arange(ids.shape[1])
        query = {"prediction": position == lengths - 1, "env": position == last}
        noun = (position >= starts) & (position <= last + self.span)
        key = {
            "env": noun,
            # The ENV utterance is the first one.
            "event": (position >= outside) & (position < last) & ~noun & ~others,
        }
        if bool(others.any()):
            key[PATCHES] = others & ~noun
        contexts, nouns = len(self.contexts), len(self.nouns)
        targets = torch.tensor([ids[0] for ids in self.targets]).repeat(contexts)
        index = torch.arange(contexts).repeat_interleave(nouns).tolist()
        of_rows = list(self.nouns) * contexts
        found = Examples(ids, lengths[:, 0] - 1, targets, index, of_rows, query, key, further=further_of(words))
        query["prediction"] = found.wanted.mask(ids.shape[1])
        return found


def _places(row: Row) -> tuple[int, int, tuple[int, ...]]:
    """The first and the last position of the noun, and those of the other patches that show it."""
    first = len(row.before)
    if not row.patches:
        return first, first + len(row.noun) - 1, ()
    *others, last = sorted(row.patches)
    return first + last, first + last, tuple(first + p for p in others)


def probes(
    tokenizer: Any,
    nouns: Sequence[str] | None = None,
    contexts: Iterable[Sequence[Any]] | str | Path | None = None,
    span: int = 0,
    *,
    spoken: Mapping[str, str] | None = None,
    cue: str | None = None,
    images: ProbeImages | None = None,
    mismatches: str | int = "all",
    seed: int = 0,
    categories: Mapping[str, str] | None = None,
    separator: str | None = None,
    joint: str | None = None,
) -> Probes:
    """Build the probes of a vocabulary.

    With a vocabulary of ENV words, probes have the study's form: ``<CHI>``, the ENV sentence, ``<CHI>``, the LAN words.
    With any other, they are plain text: the ENV sentence, ``separator``, the LAN words. A word may be several tokens;
    its surprisal is then the sum of theirs, each given those before it.

    Args:
        tokenizer: one that a study saved, or any fast tokenizer of transformers.
        nouns: the nouns, each both ENV noun and target; None takes those of the study's 100 that the vocabulary has in
            both forms.
        contexts: pairs (ENV sentence with ``{}`` for the noun, LAN words up to the noun), or a JSON file of them;
            None takes those that come with the package: ten in the study's form, or six in plain English.
        span: number of tokens after the ENV noun that count as the noun when flow from it is measured.
        spoken: noun → its spoken word, if that is another word (a synonym, its category). Two nouns with the same
            spoken word are not mismatches of each other.
        cue: the tier of the first sentence. "lan" makes it and its noun spoken, which measures recall of a word at the
            same distance, the control for grounding. "image" replaces it by an image. None keeps the cue of each
            context, "env" by default.
        images: for contexts with the cue "image", whose matched and mismatched probes differ only in the image. The
            i-th context takes the i-th image of each noun, and starts again from the first if there are fewer. A target
            that an ENV noun's images also show is not scored as its mismatch. A context with another cue begins with
            the empty image, if there is one, since the model has read no text without an image.
        mismatches: the other ENV nouns that each target is scored with: "all", a number of random ones, or those of its
            "category".
        seed: of the random mismatches.
        categories: noun → category; None takes the MacArthur-Bates CDI's.
        separator: after each sentence of plain text; by default a full stop and a space, or a space after a sentence
            that ends in a mark of its own.
        joint: between the LAN words and the target in plain text: "" if the target follows at once, as after a chat
            template's "assistant" token or in a script without spaces. None is one space, whether or not the LAN words
            end in one, and nothing if they end in a line break or a tab.

    Raises:
        ValueError: words that are not in the vocabulary (the message names all), fewer than two nouns, a duplicate
            context or one without ``{}``, a span or mismatches that do not fit, a noun without images or mismatches in
            contexts with images, or a tokenizer that joins a target with the text before it.
    """
    encoder = encoder_of(tokenizer, separator, joint)
    nouns = None if nouns is None else words_of(nouns, "nouns")
    seed = integer("seed", seed, 0)
    spoken = check_mapping({} if spoken is None else spoken, "spoken")
    words_of(spoken.values(), "spoken")
    chosen = read_contexts(contexts, "contexts.json" if isinstance(encoder, StudyEncoder) else "contexts_text.json")
    if cue is not None:
        choice("cue", cue, (*TIERS, IMAGE))
        chosen = of_images(chosen) if cue == IMAGE else [context._replace(cue=cue) for context in chosen]
    seen = any(context.cue == IMAGE for context in chosen)
    if seen and images is None:
        raise ValueError("images: contexts that show an image need images of the nouns, got None")
    if images is not None and not isinstance(encoder, StudyEncoder):
        raise ValueError(
            "images: expected the tokenizer of a study; models of other vocabularies take their own images"
        )
    if nouns is None:
        nouns = [noun for noun in STUDY_NOUNS if not encoder.missing((), [noun], [noun])]
    if len(set(nouns)) != len(nouns):
        raise ValueError("nouns: expected each noun once")
    twice = next((context for context in chosen if chosen.count(context) > 1), None)
    if twice is not None:
        raise ValueError(f"contexts: expected each context once, got {twice} twice")
    words = [spoken.get(noun, noun) for noun in nouns]
    missing = sorted(encoder.missing(chosen, nouns, words))
    if missing:
        raise ValueError(f"vocabulary: these words of the probes are not in it: {', '.join(missing)}")
    if len(nouns) < 2:
        raise ValueError(f"nouns: expected at least two, so that there are mismatches; got {len(nouns)}")
    rows = tuple(tuple(encoder.row(context, noun) for noun in nouns) for context in chosen)
    if images is not None:
        rows = images.put_into(rows, chosen, nouns, len(tokenizer))
    for context, of_context in zip(chosen, rows, strict=True):
        if len({row.before for row in of_context}) > 1:
            raise ValueError(f"tokenizer: it joins the noun with the text before it in {context}")
    _check_span(span, rows)
    targets = tuple(encoder.target(chosen[0], nouns[0], word) for word in words)
    for context in chosen[1:]:
        if encoder.target(context, nouns[0], words[0]) != targets[0]:
            raise ValueError(f"tokenizer: {words[0]!r} is not the same tokens after {context} as after {chosen[0]}")
    if len(set(words)) < 2:
        raise ValueError(
            f"spoken: expected at least two different words, so that there are mismatches; got {words[0]!r}"
        )
    # Nouns that share a spoken word match each other, so neither is scored as the other's mismatch.
    alike = torch.tensor([[u != v and a == b for v, b in enumerate(words)] for u, a in enumerate(words)])
    pairs = _pairs_of(nouns, mismatches, seed, categories) & ~alike
    if images is not None and seen:
        pairs &= ~images.also_shown(nouns, len(chosen))
        without = [noun for v, noun in enumerate(nouns) if pairs[:, v].sum() < 2]
        if without:
            raise ValueError(f"images: those of all other nouns show these too, so they have no mismatch: {without}")
    return Probes(tuple(nouns), tuple(chosen), span, rows, targets, pairs, tuple(words))


def _pairs_of(
    nouns: Sequence[str], mismatches: str | int, seed: int = 0, categories: Mapping[str, str] | None = None
) -> Tensor:
    """[V,V] bool: whether ENV noun u is scored with target v. A noun is always scored with itself.

    Args:
        nouns: V of them.
        mismatches: "all", a number of random other nouns for each target, or "category".
        seed: of the random choice, which is the same in every context, so that contexts are comparable.
        categories: noun → category; None takes the CDI's.

    Raises:
        ValueError: a number that does not fit, or nouns without a category or alone in theirs (the message names them).
    """
    count = len(nouns)
    same = torch.eye(count, dtype=torch.bool)
    if isinstance(mismatches, str) and mismatches == "all":
        return torch.ones(count, count, dtype=torch.bool)
    if is_integer(mismatches):
        mismatches = integer("mismatches", mismatches, 1, count - 1)
        rng = np.random.default_rng(seed)
        for v in range(count):
            others = np.delete(np.arange(count), v)
            same[torch.from_numpy(rng.choice(others, mismatches, replace=False)), v] = True
        return same
    if not isinstance(mismatches, str) or mismatches != "category":
        raise ValueError(f"mismatches: expected 'all', 'category' or an integer, got {described(mismatches)}")
    known = cdi_categories() if categories is None else categories
    without = [noun for noun in nouns if noun not in known]
    if without:
        raise ValueError(f"mismatches: no category is known of {', '.join(without)}; give categories")
    of = [known[noun] for noun in nouns]
    alone = [noun for noun, category in zip(nouns, of, strict=True) if of.count(category) == 1]
    if alone:
        raise ValueError(f"mismatches: no other noun has the category of {', '.join(alone)}")
    return torch.tensor([[a == b for b in of] for a in of])


def split_contexts(tokenizer: Any, contexts: Iterable[Context]) -> tuple[list[Context], dict[Context, list[str]]]:
    """The contexts whose words are all in the vocabulary, and the others with their missing words."""
    encoder = encoder_of(tokenizer)
    lacking = {context: sorted(encoder.missing([context], (), ())) for context in contexts}
    return [c for c, words in lacking.items() if not words], {c: words for c, words in lacking.items() if words}


def _check_span(span: int, rows: Sequence[Sequence[Row]]) -> None:
    room = min(len(row.after) for of_context in rows for row in of_context)
    integer("span", span, 0, room - 1)  # the prediction position stays outside
