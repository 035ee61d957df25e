"""A coloured example of what a study asks, from its own context and nouns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from symground.analysis.probing import IMAGE, context_of, joined, separator_after


class Piece(NamedTuple):
    """A part of a sentence: of the scene ("env") or spoken ("lan"); the noun is marked."""

    kind: str
    text: str
    is_noun: bool = False


class Example(NamedTuple):
    noun: str
    other: str
    matched: list[Piece]
    mismatched: list[Piece]


def example_of(config: Mapping[str, Any]) -> Example | None:
    """The first context of a study's config.json with its first two nouns; None without them.

    A model that was trained elsewhere read plain text, as its probes write it.
    """
    nouns, contexts = config.get("nouns") or [], config.get("contexts") or []
    if len(nouns) < 2 or not contexts:
        return None
    context, spoken = context_of(contexts[0]), config.get("spoken") or {}
    before, after = ("image of ", "") if context.cue == IMAGE else context.around()
    plain = bool(config.get("pretrained"))
    before_target = "".join(joined(context)) if plain else f"{context.lan} "
    first = "lan" if context.cue == "lan" else "env"

    def with_scene(noun: str) -> list[Piece]:
        pieces, last = [Piece(first, before), Piece(first, noun, True), Piece(first, after)], f"{before}{noun}{after}"
        for tier, text in (*((said.tier, said.text) for said in context.between), ("lan", before_target)):
            pieces.append(Piece(tier, f"{separator_after(last) if plain else ' '}{text}"))
            last = text
        pieces.append(Piece("lan", spoken.get(nouns[0], nouns[0]), True))
        return [piece for piece in pieces if piece.text]

    return Example(nouns[0], nouns[1], with_scene(nouns[0]), with_scene(nouns[1]))
