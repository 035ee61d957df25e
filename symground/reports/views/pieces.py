"""The tokens of a text as they are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from symground.errors import described

#: A byte of a character, as tokenizers with a fallback to bytes write it.
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
#: What a decoder writes for bytes that are no character.
_BROKEN = "\ufffd"
#: Shown for a token that only goes on with the character of the one before it.
REST = "⋯"


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token of ids, with the space before it if it has one.

    A character whose bytes are in several tokens stands at the first of them. Without a tokenizer the ids are shown.

    Raises:
        ValueError: ``tokenizer`` is neither a tokenizer nor a list of as many texts.
    """
    if tokenizer is None:
        return [str(i) for i in ids]
    if isinstance(tokenizer, (list, tuple)):
        if len(tokenizer) != len(ids) or not all(isinstance(piece, str) for piece in tokenizer):
            raise ValueError(f"tokenizer: expected a text for each of {len(ids)} tokens, got {len(tokenizer)} items")
        return list(tokenizer)
    if not hasattr(tokenizer, "convert_ids_to_tokens") or not hasattr(tokenizer, "decode"):
        raise ValueError(f"tokenizer: expected one of transformers or a list of texts, got {described(tokenizer)}")
    named = tokenizer.convert_ids_to_tokens(list(ids))
    found: list[str] = []
    while len(found) < len(ids):
        i = len(found)
        token = named[i]
        if token is None:  # an id beyond the tokenizer, such as that of an image's patch
            found.append(f"[{ids[i]}]")
            continue
        if token.startswith("▁"):
            found.append(token.replace("▁", " "))
            continue
        found += _decoded(tokenizer, ids, i, bool(_BYTE.fullmatch(token)))
    return found


def _decoded(tokenizer: Any, ids: Sequence[int], i: int, is_byte: bool) -> list[str]:
    """The texts of token i, and of those after it that go on with its character."""
    one = tokenizer.decode([ids[i]], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not is_byte and _BROKEN not in one:
        return [one]
    for stop in range(i + 2, min(i + 5, len(ids) + 1)):  # a character has at most four bytes
        whole = tokenizer.decode(list(ids[i:stop]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if _BROKEN not in whole:
            return [whole, *[REST] * (stop - i - 1)]
    return [one]
