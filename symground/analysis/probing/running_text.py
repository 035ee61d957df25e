"""Surprisal of running text, token by token, given what stands before it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from symground.analysis.probing.encoding import check_tokenizer, own_tokenizer, takes_opening
from symground.analysis.probing.examples import Ids, padded
from symground.errors import described, flag, integer, is_list, panics_named
from symground.models.hooks import hooked_by_others
from symground.models.passes import Reader, check_length, check_weights, check_words
from symground.models.trials import agree, check_deterministic, check_lengths, looks_ahead, stretch_of
from symground.running import progress

#: The most tokens of a pass, padding included, if no batch size is given.
_TOKENS = 4096
#: The most logits that are held at once.
_LOGITS = 2**25
#: A character that is no space.
_SEEN = re.compile(r"\S")


class _Text(NamedTuple):
    """One text as tokens."""

    ids: Ids
    places: tuple[tuple[int, int], ...]
    """Where each token is in the text, [start, stop); an added token is at (0, 0)."""
    added: tuple[bool, ...]
    """Whether a token is a special one that the tokenizer or ``bos`` has added."""


def surprisal(
    model: PreTrainedModel,
    texts: str | Iterable[str],
    tokenizer: Any = None,
    *,
    bos: bool | None = None,
    entropy: bool = True,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """The surprisal of every token of running text, given those before it.

    Args:
        model: a causal language model of transformers or of symground, in evaluation; it need not be attached.
        texts: one text or several.
        tokenizer: a fast one of transformers; None loads that of the folder or name that the model came from.
        bos: whether each text begins with the tokenizer's token that opens a text, by which its first token is
            predicted; None leaves this to the tokenizer. A text that has it already takes no second one. A tokenizer
            without such a token (GPT-2's has one for the end of a text only) takes the one that ends a text.
        entropy: also return the entropy of each prediction, for which all logits are computed.
        batch_size: texts per pass; None makes passes of about 4,096 tokens, of texts of similar length.

    Returns:
        A DataFrame with a row per token, without those that open or close a text. Its columns:

        - text: the number of the text, from 0;
        - word: the word that contains the token: what stands between spaces in the text; a token of spaces alone counts
          to the word after it;
        - token: the token's piece of the text, with the space before it if it has one; a character that several tokens
          spell together (an emoji's bytes) stands at the last of them, and the others have "" for it;
        - surprisal: nats, NaN where nothing stands before the token;
        - entropy: of the prediction of this token, nats, with ``entropy``;
        - word_number and position, from 0: of the word and the token in their text; id: the token's.

        A word's surprisal is the sum over its tokens: ``table.groupby(["text", "word_number"])["surprisal"].sum()``.

    Raises:
        ValueError: a text that is empty or longer than the model's positions, a slow tokenizer or one of another
            vocabulary, a model whose tokens see later ones or whose passes differ (dropout).

    Source: Hale 2001, "A probabilistic Earley parser as a psycholinguistic model" (surprisal); Hale 2003 (entropy).
    """
    check_weights(model)
    given = _checked(texts)
    entropy = flag("entropy", entropy)
    if bos is not None:
        bos = flag("bos", bos)
    if batch_size is not None:
        batch_size = integer("batch_size", batch_size, 1)
    if tokenizer is None:
        tokenizer = own_tokenizer(model)
    check_tokenizer(tokenizer)
    encoded = [_encoded(tokenizer, text, i, bos) for i, text in enumerate(given)]
    for i, one in enumerate(encoded):
        check_length(model, len(one.ids), "texts", f" in text {i}")
        check_words(model, max(one.ids), "tokenizer", f" of text {i}")
    check_deterministic(model)
    if looks_ahead(model):
        raise ValueError(
            f"model: expected a causal one; the tokens of {type(model).__name__} see later ones, so none is predicted "
            "from those before it"
        )
    numbers = _numbers(model, encoded, entropy, batch_size)
    return pd.concat(
        [_table(i, *each, entropy) for i, each in enumerate(zip(given, encoded, numbers, strict=True))],
        ignore_index=True,
    )


def _checked(texts: Any) -> list[str]:
    several = is_list(texts) or isinstance(texts, Iterator)
    found = [texts] if isinstance(texts, str) else list(texts) if several else []
    if not found:
        raise ValueError(f"texts: expected a text or a list of them, got {described(texts)}")
    for i, text in enumerate(found):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"texts: expected texts with at least one word, got {described(text)} at {i}")
    return found


def _encoded(tokenizer: Any, text: str, number: int, bos: bool | None) -> _Text:
    with panics_named(f"tokenizer: it fails on text {number}"):
        adds = bos is None and takes_opening(tokenizer, text)
        found = tokenizer(text, add_special_tokens=adds, return_offsets_mapping=True, truncation=False, verbose=False)
    ids, places = list(found["input_ids"]), [(int(a), int(b)) for a, b in found["offset_mapping"]]
    special = {*tokenizer.all_special_ids}
    # The text may contain the token that opens a text as words of its own; what is added spells nothing.
    added = [a == b and i in special for i, (a, b) in zip(ids, places, strict=True)]
    if bos:
        opens = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
        if opens is None:
            raise ValueError("bos: expected False, since the tokenizer has no token that opens or ends a text")
        if ids[:1] != [opens]:
            ids, places, added = [opens, *ids], [(0, 0), *places], [True, *added]
    if all(added):
        raise ValueError(f"tokenizer: it gives no token for text {number}")
    return _Text(tuple(ids), tuple(places), tuple(added))


def _numbers(
    model: PreTrainedModel, texts: Sequence[_Text], entropy: bool, batch_size: int | None
) -> list[NDArray[np.float32]]:
    """Of each text [2,T]: surprisal and entropy of each token, NaN of the first."""
    reader, found = Reader(model), [np.full((2, len(text.ids)), np.nan, np.float32) for text in texts]
    hooked = hooked_by_others(model)  # a hook may treat a text otherwise beside others
    batches = list(
        _batches([len(text.ids) for text in texts], 1 if hooked else batch_size, stretch_of(model) is not None)
    )
    with progress("surprisal", len(batches), quick=True) as bar, torch.inference_mode():
        if hooked:
            _check_prefix(model, reader, max((text.ids for text in texts), key=len))
        for batch in batches:
            ids = padded([texts[i].ids for i in batch])
            lengths = torch.tensor([len(texts[i].ids) for i in batch])
            check_lengths(model, lengths, ids.shape[1])
            if ids.shape[1] > 1:
                seen, _ = reader.read(ids[:, :-1], keep=ids.shape[1] - 1)
                there = torch.arange(1, ids.shape[1]) < lengths[:, None]  # [B,T-1]
                of_tokens = _of_tokens(reader, seen[there.to(seen.device)], ids[:, 1:][there], entropy)
                for i, each in zip(batch, of_tokens.split((lengths - 1).tolist(), 1), strict=True):
                    found[i][:, 1:] = each.numpy()
            bar.advance()
    return found


def _check_prefix(model: PreTrainedModel, reader: Reader, ids: Ids) -> None:
    """Refuse a model with hooks by which what it predicts after the first half of a text depends on the second."""
    half, whole = -(-len(ids) // 2), torch.tensor([ids])
    alone, _ = reader.read(whole[:, :half])
    within, _ = reader.read(whole, keep=len(ids))
    if not agree(reader.logits(within[:, half - 1]), reader.logits(alone[:, -1])):
        raise ValueError(
            f"model: a hook or a forward function that was put on {type(model).__name__} makes other predictions of a "
            "text if more of it follows, so they are not of each token given those before it"
        )


def _of_tokens(reader: Reader, seen: Tensor, ids: Tensor, entropy: bool) -> Tensor:
    """[2,M] surprisal and entropy of the tokens ids [M] by what `Reader.read` gives of those before them [M,·]."""
    if not entropy:
        each = reader.surprisal(seen, ids[:, None])[:, 0].float().cpu()
        return torch.stack([each, torch.full_like(each, float("nan"))])
    parts = []
    step = max(1, _LOGITS // reader.words)
    for rows, of_rows in zip(seen.split(step), ids.split(step), strict=True):
        log_p = reader.logits(rows).to(torch.promote_types(seen.dtype, torch.float32)).log_softmax(-1)
        each = -log_p.gather(1, of_rows.to(log_p.device)[:, None])[:, 0]
        parts.append(torch.stack([each, torch.special.entr(log_p.exp_()).sum(-1)]).float().cpu())
    return torch.cat(parts, 1)


def _batches(lengths: Sequence[int], batch_size: int | None, alike: bool) -> Iterator[list[int]]:
    """Indices of texts for each pass, those of similar length together; ``alike``: of one length only."""
    found: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        most = batch_size or max(1, _TOKENS // lengths[found[0] if found else i])
        if found and (len(found) == most or (alike and lengths[i] != lengths[found[0]])):
            yield found
            found = []
        found.append(i)
    yield found


def _table(number: int, text: str, tokens: _Text, numbers: NDArray[np.float32], entropy: bool) -> pd.DataFrame:
    kept = [i for i, added in enumerate(tokens.added) if not added]
    words = [(match.start(), match.end()) for match in re.finditer(r"\S+", text)]
    starts = np.array([start for start, _ in words])
    places = _of_bytes(text, [tokens.places[i] for i in kept])
    of_word = []
    for start, stop in places:
        seen = _SEEN.search(text, start, stop)
        if seen is None:
            of_word.append(min(int(np.searchsorted(starts, stop)), len(words) - 1))
        else:
            of_word.append(int(np.searchsorted(starts, seen.start(), "right")) - 1)
    columns: dict[str, Any] = {
        "text": number, "word": [text[slice(*words[w])] for w in of_word], "token": _pieces(text, places),
        "surprisal": numbers[0, kept],
    }  # fmt: skip
    if entropy:
        columns["entropy"] = numbers[1, kept]
    positions = {"word_number": of_word, "position": np.arange(len(kept)), "id": [tokens.ids[i] for i in kept]}
    return pd.DataFrame({**columns, **positions})


def _of_bytes(text: str, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The places with those of single characters where so many tokens as a piece has bytes have the piece's place.

    So tokenizers with a fallback to bytes tell the place of a run of unknown characters.
    """
    found = []
    for (a, b), run in groupby(places):
        alike = list(run)
        of_byte = [(a + i, a + i + 1) for i, character in enumerate(text[a:b]) for _ in character.encode()]
        found += of_byte if len(of_byte) == len(alike) else alike
    return found


def _pieces(text: str, places: Sequence[tuple[int, int]]) -> list[str]:
    """The pieces of a text at places in it, without the characters that later places have too."""
    found, stop = [], len(text)
    for a, b in reversed(places):
        found.append(text[a : min(b, stop)])
        stop = min(a, stop) if a < b else stop
    return found[::-1]
